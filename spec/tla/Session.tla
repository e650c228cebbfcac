------------------------------ MODULE Session ------------------------------
(***************************************************************************)
(* The life of one session at one of its two ends, over the generated      *)
(* table of the product (SessionTable: rows, guards by name, events).      *)
(* What the rows *do* (bindings, epochs, clocks, attempts, nonces) and what *)
(* their guards mean is written here a second time, by hand, and so are the *)
(* promises: the table is checked against them, not against itself.        *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, TLC, SessionTable

CONSTANTS
  Transports,  \* names of transports
  Limits,      \* attempts per episode that some policy allows
  Counting     \* FALSE keeps all counters still, so that endless behaviours are finite graphs (Liveness.cfg)

VARIABLES
  s,      \* the session's record
  again,  \* the input that the next row has to take too, in the same commit; Nothing if none
  row     \* the row taken last, for the properties of safety

vars == <<s, again, row>>

None == "none"
NoTry == [kind |-> None, on |-> None]
Kinds == {"switch", "revalidate", "rebind"}
Nothing == [event |-> None, on |-> None, epoch |-> 0, nonce |-> 0, owner |-> 0, kind |-> None, limit |-> 0,
            floor |-> 0]
EpochJump == 64  \* a request that names an epoch further ahead is refused

Live == States \ {"TERMINATED"}
Unsettled == {"VOLATILE", "RECOVERING", "DEGRADED"}
Events == {Priority[i] : i \in DOMAIN Priority}
RowsFor == [state \in States, event \in Events |-> {r \in Rows : state \in r.from /\ r.event = event}]
RowOf == [id \in {r.id : r \in Rows} |-> CHOOSE r \in Rows : r.id = id]

Count(n) == IF Counting \/ n < 1 THEN n ELSE 1
Least(a, b) == IF a < b THEN a ELSE b
Most(a, b) == IF a > b THEN a ELSE b

-----------------------------------------------------------------------------
(* Inputs: what the world may tell the session. *)

Naming == {"HandshakeCompleted", "InstabilitySeen", "TransportDied", "PeerAddressChanged", "ReattachAccepted",
           "TransportStabilized", "AttemptStarted", "IncumbentRevalidated", "RebindingValidated", "ReattachCommitted",
           "AttemptFailed"}
Proofs == {"ReattachAccepted", "ReattachCommitted"}
GatewayOnly == {"ReattachAccepted", "ReattachRefused"}
ClientOnly == {"ReattachCommitted"}

Heard(event) == /\ event \in GatewayOnly => s.role = "gateway"
                /\ event \in ClientOnly => s.role = "client"
Fresh == Cardinality(s.nonces) + 1  \* nonces are numbered in the order of their use

Inputs(event) ==
  {[event |-> event, on |-> on, epoch |-> epoch, nonce |-> nonce, owner |-> owner, kind |-> kind, limit |-> limit,
    floor |-> floor] :
     on \in IF event \in Naming THEN Transports ELSE {None},
     epoch \in CASE event = "HandshakeCompleted" -> {1}
                 [] event \in Proofs \cup {"KeysRotated"} -> {s.epoch, s.epoch + 1}
                 [] event = "OwnerChanged" /\ s.role = "gateway" -> {0, s.epoch + 1}
                 [] OTHER -> {0},
     nonce \in IF event \in Proofs THEN {Fresh} \cup {n \in {1} : n \in s.nonces} ELSE {0},
     owner \in IF event = "OwnerChanged" THEN {s.owner, s.owner + 1} ELSE {0},
     kind \in IF event = "AttemptStarted" THEN Kinds ELSE {None},
     limit \in CASE event = "PolicyReloaded" -> Limits
                 [] event = "OwnerChanged" /\ s.role = "gateway" -> Limits \cup {0}
                 [] OTHER -> {0},
     floor \in IF event = "OwnerChanged" /\ s.role = "gateway" THEN {0, s.version + 1} ELSE {0}}

\* The checks before the machine: a request or an answer reaches it only with a nonce that was never used and an epoch
\* within reach (everything else is row 23's); the first epoch is 1; only clients start attempts to switch. A new owner
\* is told which version the client proved to know only if it is more than the record has. It is told the epoch before
\* the one that a request asks for, whatever the record has: attempts at other gateways use epochs up.
Valid(x) == /\ Heard(x.event)
            /\ x.event \in Proofs => x.nonce \notin s.nonces /\ x.epoch <= s.epoch + EpochJump
            /\ x.event \in Naming => x.on # None
            /\ x.event = "HandshakeCompleted" => x.epoch = 1
            /\ x.event = "OwnerChanged" /\ x.floor # 0 => x.floor > s.version
            /\ x.event = "AttemptStarted" => x.kind \in Kinds /\ (x.kind = "switch" => s.role = "client")

-----------------------------------------------------------------------------
(* Guards, by the names that the table uses. *)

OnBinding(x) == s.bound # None /\ s.bound = x.on
OnIncumbentUnbound(x) == s.bound = None /\ s.incumbent = x.on
NewerEpoch(x) == x.epoch > s.epoch
AttemptsLeft == s.attempts < s.limit
TryOn(x) == s.try # NoTry /\ s.try.on = x.on
TryIs(x, kind) == TryOn(x) /\ s.try.kind = kind
Switches(x) == TryIs(x, "switch") /\ NewerEpoch(x)
SamePath(x) == s.incumbent = x.on

Guards == {"always", "bound", "transportless", "on_binding", "not_on_binding", "on_incumbent_unbound",
           "not_on_incumbent", "newer_epoch", "epoch_not_newer", "attempts_left", "attempts_used_up",
           "newer_epoch_and_attempts_left", "newer_epoch_and_attempts_used_up", "newer_epoch_elsewhere",
           "newer_epoch_same_path", "newer_owner", "owner_not_newer", "no_attempt", "attempt_runs",
           "attempt_on_transport", "no_attempt_on_transport", "attempt_revalidates", "attempt_does_not_revalidate",
           "attempt_rebinds", "attempt_does_not_rebind", "attempt_switches_elsewhere", "attempt_switches_same_path",
           "attempt_does_not_switch", "rotation_newer", "rotation_not_newer"}

Holds(guard, x) ==
  CASE guard = "always" -> TRUE
    [] guard = "bound" -> s.bound # None
    [] guard = "transportless" -> s.bound = None
    [] guard = "on_binding" -> OnBinding(x)
    [] guard = "not_on_binding" -> ~OnBinding(x)
    [] guard = "on_incumbent_unbound" -> OnIncumbentUnbound(x)
    [] guard = "not_on_incumbent" -> ~OnBinding(x) /\ ~OnIncumbentUnbound(x)
    [] guard = "newer_epoch" -> NewerEpoch(x)
    [] guard = "epoch_not_newer" -> ~NewerEpoch(x)
    [] guard = "attempts_left" -> AttemptsLeft
    [] guard = "attempts_used_up" -> ~AttemptsLeft
    [] guard = "newer_epoch_and_attempts_left" -> NewerEpoch(x) /\ AttemptsLeft
    [] guard = "newer_epoch_and_attempts_used_up" -> NewerEpoch(x) /\ ~AttemptsLeft
    [] guard = "newer_epoch_elsewhere" -> NewerEpoch(x) /\ ~SamePath(x)
    [] guard = "newer_epoch_same_path" -> NewerEpoch(x) /\ SamePath(x)
    [] guard = "newer_owner" -> x.owner > s.owner
    [] guard = "owner_not_newer" -> x.owner <= s.owner
    [] guard = "no_attempt" -> s.try = NoTry
    [] guard = "attempt_runs" -> s.try # NoTry
    [] guard = "attempt_on_transport" -> TryOn(x)
    [] guard = "no_attempt_on_transport" -> ~TryOn(x)
    [] guard = "attempt_revalidates" -> TryIs(x, "revalidate") /\ SamePath(x)
    [] guard = "attempt_does_not_revalidate" -> ~(TryIs(x, "revalidate") /\ SamePath(x))
    [] guard = "attempt_rebinds" -> TryIs(x, "rebind") /\ SamePath(x)
    [] guard = "attempt_does_not_rebind" -> ~(TryIs(x, "rebind") /\ SamePath(x))
    [] guard = "attempt_switches_elsewhere" -> Switches(x) /\ ~SamePath(x)
    [] guard = "attempt_switches_same_path" -> Switches(x) /\ SamePath(x)
    [] guard = "attempt_does_not_switch" -> ~Switches(x)
    [] guard = "rotation_newer" -> NewerEpoch(x) /\ s.bound # None
    [] guard = "rotation_not_newer" -> ~(NewerEpoch(x) /\ s.bound # None)
    [] OTHER -> Assert(FALSE, <<"a guard without meaning", guard>>)

-----------------------------------------------------------------------------
(* Effects: what a row changes besides state and version. *)

Effect(r) ==
  CASE r.next = "TERMINATED" -> "end"
    [] r.id = "1" -> "attach"
    [] r.id \in {"3", "5", "6", "7"} -> "open"
    [] r.id = "4" -> "open unbound"
    [] r.id = "8" -> "open for owner"
    [] r.id = "8.volatile" -> "recover for owner"
    [] r.id = "8.same" -> "unbind for owner"
    [] r.id = "8.birth" -> "own"
    [] r.id \in {"7.volatile", "7.degraded", "9", "10", "10.better", "11.known", "12.rebind", "12.forced", "21"} -> "recover"
    [] r.id = "11" -> "recover unbound"
    [] r.id \in {"14", "15"} -> "return"
    [] r.id \in {"16", "16.same", "16.client", "16.client.same"} -> "reattach"
    [] r.id = "17.start" -> "try"
    [] r.id = "17" -> "give up"
    [] r.id \in {"18", "19", "20"} -> "hold"
    [] r.id = "22" -> "unbind"
    [] r.id = "31" -> "bounds"
    [] r.id = "36" -> "rotate"
    [] ~r.mutates /\ r.next = "" -> "nothing"
    [] OTHER -> "unknown"

Open(a) == [a EXCEPT !.episodeAt = Count(a.version + 1), !.attempts = 0]
Unbind(a) == [a EXCEPT !.bound = None, !.lostAt = IF @ = 0 THEN Count(a.version + 1) ELSE @]
Recover(a) == [a EXCEPT !.attempts = @ + 1, !.try = NoTry]
Hold(a) == [a EXCEPT !.try = NoTry]
\* A new owner at a gateway is a new process: it runs under its own policy (limit 0: the policy is as before).
\* What the client proved to know, its former owner had bound: versions and epochs go on from there.
Own(a, x) == LET owned == [a EXCEPT !.owner = Count(x.owner), !.epoch = IF x.epoch > @ THEN Count(x.epoch) ELSE @]
             IN IF x.limit = 0 THEN owned ELSE [owned EXCEPT !.limit = x.limit, !.nextLimit = 0]
UnbindForOwner(a, x) ==
  LET lost == Own(Unbind(a), x)
  IN IF lost.try.kind = "switch" THEN lost ELSE [lost EXCEPT !.try = NoTry]
\* Back in ATTACHED: clocks stop, attempts count anew, the policy that waited comes into force.
Settle(a) == [a EXCEPT !.lostAt = 0, !.episodeAt = 0, !.attempts = 0, !.try = NoTry,
                       !.limit = IF a.nextLimit = 0 THEN @ ELSE a.nextLimit, !.nextLimit = 0]
Bind(a, x, epoch) == [a EXCEPT !.bound = x.on, !.incumbent = x.on, !.epoch = Count(epoch)]
Use(a, nonce) == IF Counting THEN [a EXCEPT !.nonces = @ \cup {nonce}] ELSE a

Changed(a, effect, x) ==
  CASE effect = "nothing" -> a
    [] effect = "attach" -> Bind(a, x, x.epoch)
    [] effect = "open" -> Open(a)
    [] effect = "open unbound" -> Unbind(Open(a))
    [] effect = "open for owner" -> Own(Unbind(Open(a)), x)
    [] effect = "recover" -> Recover(a)
    [] effect = "recover unbound" -> Recover(Unbind(a))
    [] effect = "recover for owner" -> Recover(UnbindForOwner(a, x))
    [] effect = "unbind for owner" -> UnbindForOwner(a, x)
    [] effect = "own" -> Own(a, x)
    [] effect = "return" -> Settle(Bind(a, x, a.epoch))
    [] effect = "reattach" -> Settle(Use(Bind(a, x, x.epoch), x.nonce))
    [] effect = "try" -> [a EXCEPT !.try = [kind |-> x.kind, on |-> x.on]]
    [] effect = "give up" -> [a EXCEPT !.try = NoTry]
    [] effect = "hold" -> Hold(a)
    [] effect = "unbind" -> Unbind(a)
    [] effect = "bounds" -> [a EXCEPT !.limit = IF a.state = "ATTACHED" THEN x.limit ELSE Least(@, x.limit),
                                      !.nextLimit = x.limit]
    [] effect = "rotate" -> [a EXCEPT !.epoch = Count(x.epoch)]
    [] effect = "end" -> [a EXCEPT !.bound = None, !.try = NoTry, !.nextLimit = 0]
    [] OTHER -> Assert(FALSE, <<"an effect without meaning", effect>>)

After(r, x) == [Changed(s, Effect(r), x) EXCEPT !.state = IF r.next = "" THEN @ ELSE r.next,
                                                !.version = IF r.mutates THEN Count(Most(@, x.floor) + 1) ELSE @]

-----------------------------------------------------------------------------
(* Behaviour. *)

Birth(role, limit) ==
  [role |-> role, state |-> "BIRTH", version |-> 1, epoch |-> 0, bound |-> None, incumbent |-> None, owner |-> 1,
   attempts |-> 0, try |-> NoTry, lostAt |-> 0, episodeAt |-> 0, nonces |-> {}, limit |-> limit, nextLimit |-> 0]

Init == /\ s \in {Birth(role, limit) : role \in {"client", "gateway"}, limit \in Limits}
        /\ again = Nothing
        /\ row = "0"

\* One row. The guard is compared, not conjoined: TLC would take its disjunctions for choices.
Take(r, x) == /\ Holds(r.guard, x) = TRUE
              /\ s' = After(r, x)
              /\ again' = IF r.again THEN x ELSE Nothing
              /\ row' = IF Counting THEN r.id ELSE row

Feed == again # Nothing /\ \E r \in RowsFor[s.state, again.event] : Take(r, again)
Happens(event) == again = Nothing /\ \E x \in Inputs(event) : Valid(x) = TRUE /\ \E r \in RowsFor[s.state, event] : Take(r, x)

Next == Feed \/ \E event \in Events : Happens(event)
Spec == Init /\ [][Next]_vars

\* Safety runs with this view: the rows look at counters only relative to the session's own, so states that differ in
\* nothing else behave alike, and the state space is finite although versions, epochs and nonces are not bounded.
Seen == <<s.role, s.state, s.bound, s.incumbent, s.attempts, s.try, s.lostAt # 0, s.episodeAt # 0, s.nonces # {},
          s.limit, s.nextLimit, again.event, again.on, again.limit,
          IF again = Nothing THEN 0 ELSE again.epoch - s.epoch, again.nonce \in s.nonces>>

\* Tells each row when it is first taken (an action constraint that forbids nothing): rows never taken are a gap.
RowsTold == 1
ASSUME TLCSet(RowsTold, {})
Tell == IF row' \in TLCGet(RowsTold) THEN TRUE
        ELSE TLCSet(RowsTold, TLCGet(RowsTold) \cup {row'}) /\ PrintT(<<"row", row'>>)

-----------------------------------------------------------------------------
(* The promises, by the names of src/jumpvpn/properties.py (PROOF is a word of TLA+: FRESH_PROOF). *)

TypeOK == /\ s.state \in States /\ s.version \in Nat /\ s.epoch \in Nat /\ s.owner \in Nat /\ s.attempts \in Nat
          /\ s.bound \in Transports \cup {None} /\ s.incumbent \in Transports \cup {None}
          /\ s.try.kind \in Kinds \cup {None} /\ s.limit \in Limits /\ s.nextLimit \in Limits \cup {0}

\* The table says nothing that this module does not know.
KNOWN == \A r \in Rows : /\ r.guard \in Guards /\ Effect(r) # "unknown" /\ r.event \in Events
                         /\ r.next \in States \cup {""} /\ r.from \subseteq States

Lifecycle == {<<"BIRTH", "ATTACHED">>, <<"ATTACHED", "VOLATILE">>, <<"VOLATILE", "RECOVERING">>,
              <<"RECOVERING", "ATTACHED">>, <<"RECOVERING", "DEGRADED">>, <<"DEGRADED", "RECOVERING">>}
             \cup {<<state, "TERMINATED">> : state \in Live}
EDGES == [][s'.state # s.state => <<s.state, s'.state>> \in Lifecycle]_vars

SINGLE_BINDING == /\ s.state = "ATTACHED" => s.bound # None
                  /\ s.state \in {"BIRTH", "TERMINATED"} => s.bound = None
                  /\ s.bound # None => s.bound = s.incumbent

ABSORBING == [][s.state = "TERMINATED" => UNCHANGED <<s, again>>]_vars

\* Only a change of owner leaves versions out: those that the client knew of the former owner.
VERSION == [][IF s' = [s EXCEPT !.try = s'.try] THEN TRUE
              ELSE s'.version = s.version + 1 \/ (s'.owner > s.owner /\ s'.version > s.version)]_vars

\* A row that does not mutate changes at most the running attempt, which is no part of the record.
REJECTION == [][~RowOf[row'].mutates => s' = [s EXCEPT !.try = s'.try]]_vars

\* Into ATTACHED (but from BIRTH) only with a nonce never used before and a newer epoch, or by a proof of the incumbent
\* that was asked for.
FRESH_PROOF == [][s.state # "BIRTH" /\ s.state # "ATTACHED" /\ s'.state = "ATTACHED" =>
              \/ s'.epoch > s.epoch /\ \E n \in s'.nonces : n \notin s.nonces
              \/ /\ s.try.kind \in {"revalidate", "rebind"} /\ s.try.on = s.incumbent
                 /\ s'.bound = s.incumbent /\ s'.epoch = s.epoch]_vars

EPOCH == [][/\ s'.epoch >= s.epoch /\ s'.owner >= s.owner
            /\ s'.owner > s.owner => s'.bound = None /\ s'.try.kind \in {"switch", None}
            /\ s'.bound \notin {s.bound, None} => s'.epoch > s.epoch \/ s.bound = None]_vars

DEATH_IS_NOT_THE_END == [][s.state # "TERMINATED" /\ s'.state = "TERMINATED" => RowOf[row'].event # "TransportDied"]_vars

CLOCKS_AGREE == s.state \in Live \ {"BIRTH"} => (s.lostAt # 0 <=> s.bound = None) /\ (s.episodeAt # 0 <=> s.state \in Unsettled)
CLOCKS == [][/\ s'.lostAt # s.lostAt => s.lostAt = 0 \/ (s'.lostAt = 0 /\ s'.state = "ATTACHED")
             /\ s'.episodeAt # s.episodeAt => \/ s.state = "ATTACHED" /\ s'.state = "VOLATILE"
                                              \/ s'.episodeAt = 0 /\ s'.state = "ATTACHED"]_vars

\* Each stay in RECOVERING is one attempt of the episode, and the policy's bound holds when a further one begins.
BOUNDED_RECOVERY == [][/\ s.state # "RECOVERING" /\ s'.state = "RECOVERING" => s'.attempts = s.attempts + 1 /\ s.attempts < s.limit
                       /\ s'.attempts > s.attempts => s'.state = "RECOVERING" /\ s.state # "RECOVERING"
                       /\ s'.attempts < s.attempts => s'.state = "ATTACHED" \/ s.state = "ATTACHED"]_vars

Enabled(x) == {r \in RowsFor[s.state, x.event] : Holds(r.guard, x)}
TOTALITY == IF again # Nothing THEN Cardinality(Enabled(again)) = 1
            ELSE \A event \in Events : RowsFor[s.state, event] # {} =>
                   \A x \in Inputs(event) : Heard(event) => Cardinality(Enabled(x)) = 1

Leads(event, states) == \A x \in Inputs(event) : \A r \in Enabled(x) : r.next \in states
Ends(event) == RowsFor[s.state, event] # {} /\ Leads(event, {"TERMINATED"})
\* Whatever the state, a deadline that has passed ends what it bounds.
FINITE == again = Nothing =>
  /\ s.state \in Live => Ends("LifetimePassed") /\ Ends("KeysExpired") /\ Ends("CloseRequested") /\ Ends("SecurityFailed")
  /\ s.state \in Live \ {"BIRTH"} /\ s.bound = None => Ends("TransportTtlPassed")
  /\ s.state \in Unsettled => Ends("EpisodePassed")
  /\ s.state = "BIRTH" => Ends("HandshakeFailed")
  /\ s.state = "RECOVERING" => RowsFor[s.state, "RecoveryWindowPassed"] # {} /\ Leads("RecoveryWindowPassed", {"DEGRADED"})
  /\ s.state = "VOLATILE" => RowsFor[s.state, "DwellPassed"] # {} /\ Leads("DwellPassed", {"RECOVERING"})

\* A bound that forbids nothing: with attempts left, a valid proof on any transport leads on to ATTACHED, from any state
\* of an episode.
MayTry == s.state # "DEGRADED" \/ AttemptsLeft
MUST_RECOVER == again = Nothing /\ s.state \in Unsettled /\ MayTry =>
  IF s.role = "gateway"
  THEN \A x \in Inputs("ReattachAccepted") : Valid(x) /\ NewerEpoch(x) =>
         \E r \in Enabled(x) : r.next = "ATTACHED" \/ (r.again /\ r.next = "RECOVERING")
  ELSE CASE s.state = "VOLATILE" -> Leads("DwellPassed", {"RECOVERING"})
         [] s.state = "DEGRADED" -> RowsFor[s.state, "ConditionMet"] # {} /\ Leads("ConditionMet", {"RECOVERING"})
         [] s.try = NoTry -> \A x \in Inputs("AttemptStarted") : \E r \in Enabled(x) : Effect(r) = "try"
         [] s.try.kind = "switch" -> \A x \in Inputs("ReattachCommitted") : Valid(x) /\ Switches(x) =>
                                       \E r \in Enabled(x) : r.next = "ATTACHED"
         [] OTHER -> TRUE

\* Every change shows: a row that mutates has an event, and the end of a session has its own.
VISIBLE == \A r \in Rows : /\ r.mutates => r.next # "" \/ r.emits # {}
                           /\ r.next # "" => r.mutates /\ r.reasons # {}
                           /\ r.next = "TERMINATED" <=> "session.terminated" \in r.emits

-----------------------------------------------------------------------------
(* Liveness (Liveness.cfg): only the deadlines are fair; everything else may fail to happen for ever. *)

Passes(deadline) == again = Nothing /\ \E r \in RowsFor[s.state, deadline] : Take(r, [Nothing EXCEPT !.event = deadline])
Fair == WF_vars(Feed) /\ WF_vars(Passes("RecoveryWindowPassed")) /\ WF_vars(Passes("EpisodePassed"))
LiveSpec == Spec /\ Fair
PROGRESS == (again # Nothing) ~> (again = Nothing)
RECOVERING_ENDS == (s.state = "RECOVERING") ~> (s.state # "RECOVERING")
EPISODE_ENDS == (s.state \in Unsettled) ~> (s.state \in {"ATTACHED", "TERMINATED"})
=============================================================================
