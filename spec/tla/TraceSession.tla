---------------------------- MODULE TraceSession ----------------------------
(***************************************************************************)
(* Does the session module explain what a node wrote? TraceData (written   *)
(* by jumpvpn.tracecheck) holds the events of several sessions:            *)
(*   Traces == << [end |-> .., limits |-> {..}, silent |-> .., cut |-> .., *)
(*                 lines |-> <<[event |-> .., row |-> .., ..], ..>>], .. >> *)
(* A cursor walks over one of them. Each line must be an event of an       *)
(* action of Session, with every logged value equal to the action's.       *)
(***************************************************************************)
EXTENDS Session, Sequences, TraceData

VARIABLES
  trace,  \* which one
  l,      \* the line that is next
  unshown,   \* the events that the row taken last has still to show
  done,   \* that row, its input, its reason, and the session before it
  by,     \* the node that acts under the present term
  fenced, \* whether it has said that it lost the session: then it may not act for it any more
  served  \* at a client: the latest term whose owner granted it an epoch

traceVars == <<s, again, row, trace, l, unshown, done, by, fenced, served>>

Lines == Traces[trace].lines
Line == Lines[l]
Begin == [id |-> "0", x |-> Nothing, reason |-> "", before |-> s]

\* Rows of the node's own lane that are part of a trace: they start and end attempts, and tell of an owner that lost the
\* session. All others are left out by the converter, as are denials, measurements and warnings: quiet rows change
\* nothing that this module has.
Attempts == {"17.start", "17"}
Loss == "32"
Noted == [id \in Attempts \cup {Loss} |-> CASE id = "17" -> {"transport.switch_failed"}
                                           [] id = "17.start" -> {"reattach.attempt"}
                                           [] id = Loss -> {"ownership.lost"}]
Shown(r) == IF r.id \in DOMAIN Noted THEN Noted[r.id]
            ELSE (IF r.next # "" THEN {"session.state_change"} ELSE {}) \cup r.emits

-----------------------------------------------------------------------------
(* The input of a row, from what is logged. *)

\* A request or an answer shows its transport, epoch and nonce in its result, a few lines after its first row.
Ahead == {i \in l..(l + 6) : i <= Len(Lines) /\ Lines[i].event = "reattach.result"}
Result == Lines[CHOOSE i \in Ahead : \A j \in Ahead : i <= j]
\* The version that a new owner was told of is in the second line of its row, or in the first if the state stays.
Floor(r) == LET i == IF r.next = "" THEN l ELSE l + 1
            IN IF i <= Len(Lines) /\ Lines[i].event = "ownership.acquired" /\ Lines[i].floor > 0 THEN Lines[i].floor ELSE 0
\* Why a new owner begins is in the same line; "" if it does not say. Only a request brings the client's word.
Claim(r) == LET i == IF r.next = "" THEN l ELSE l + 1
            IN IF i <= Len(Lines) /\ Lines[i].event = "ownership.acquired" THEN Lines[i].kind ELSE ""
Unlogged == -2  \* some fresh nonce that the log does not show: no line is equal to it

InputOf(r) ==
  LET proof == r.event \in Proofs
      known == proof /\ Ahead # {}
      epoch == IF known THEN Result.epoch ELSE IF r.event = "KeysRotated" THEN Line.epoch ELSE Line.gen
  IN [event |-> r.event,
      on |-> IF r.event \notin Naming THEN None ELSE IF known THEN Result.transport ELSE Line.transport,
      epoch |-> IF proof /\ ~(epoch > s.epoch /\ epoch <= s.epoch + EpochJump) THEN s.epoch + 1 ELSE epoch,
      nonce |-> IF known /\ Result.nonce > 0 /\ Result.nonce \notin s.nonces THEN Result.nonce ELSE Unlogged,
      owner |-> IF r.event = "OwnerChanged" THEN Line.owner ELSE 0,
      kind |-> IF r.event = "AttemptStarted" THEN Line.kind ELSE None,
      limit |-> 0,
      floor |-> IF r.event = "OwnerChanged" THEN Floor(r) ELSE 0]

\* Unlogged: how many attempts a reloaded policy allows once it is in force in full, and those of a new process; the
\* epoch that the client had come to at a change of owner, which later lines may show.
EpochsOf(r) == IF r.event # "OwnerChanged" THEN {InputOf(r).epoch}
               ELSE IF s.role = "client" \/ Claim(r) \notin {"request", ""} THEN {0}
               ELSE {0} \cup {Lines[i].gen : i \in {j \in l..(l + 8) : j <= Len(Lines) /\ Lines[j].gen > s.epoch}}
InputsOf(r) == {[InputOf(r) EXCEPT !.limit = limit, !.epoch = epoch] :
                  epoch \in EpochsOf(r),
                  limit \in CASE r.event = "PolicyReloaded" -> Traces[trace].limits
                              [] r.event = "OwnerChanged" /\ s.role = "gateway" -> Traces[trace].limits \cup {0}
                              [] OTHER -> {0}}

-----------------------------------------------------------------------------
(* What a line must say: b is the session before the row, a the one after it. *)

Causes == {"request", "orphan", "superseded", "restart"}

Fits(line, event, r, x, reason, b, a) ==
  LET On(transport) == line.transport = transport /\ line.gen = IF transport = None THEN -1 ELSE a.epoch
  IN /\ line.event = event /\ line.row = r.id /\ line.version = a.version /\ line.owner = a.owner
     /\ line.lane = IF r.id \in DOMAIN Noted THEN "N" ELSE "S"
     /\ line.to = a.state /\ line.from = IF event = "session.state_change" THEN b.state ELSE a.state
     /\ line.reason = reason
     /\ CASE event = "session.state_change" ->
               /\ On(IF a.bound # None THEN a.bound ELSE IF b.bound # None THEN b.bound ELSE a.incumbent)
               /\ line.attempts = IF a.attempts # 0 THEN a.attempts ELSE b.attempts
               /\ line.lost => b.lostAt # 0
               /\ line.episode => b.episodeAt # 0
               /\ line.limit = IF b.state = "RECOVERING" /\ a.state = "ATTACHED" /\ b.nextLimit # 0 THEN a.limit ELSE -1
          [] event = "session.terminated" -> On(b.incumbent) /\ line.epoch = b.epoch
          [] event = "session.episode_closed" -> On(None) /\ line.attempts = b.attempts /\ line.kind = a.state
          [] event = "transport.attached" -> On(a.bound) /\ line.epoch = a.epoch
          [] event = "transport.retired" -> On(b.incumbent) /\ line.epoch = b.epoch
          [] event = "transport.switch" -> On(x.on) /\ line.away = b.incumbent /\ line.here = x.on
          [] event = "transport.dead" -> On(x.on)
          [] event \in {"transport.revalidated", "transport.rebound"} -> On(a.bound)
          [] event = "transport.switch_denied" -> On(a.incumbent)
          [] event = "reattach.result" ->
               On(x.on) /\ line.kind = "SUCCESS" /\ line.epoch = x.epoch /\ line.nonce = x.nonce /\ line.attempts = b.attempts
          [] event = "ownership.acquired" ->
               /\ On(None) /\ line.epoch = a.owner /\ (line.floor = x.floor \/ (x.floor = 0 /\ line.floor = -1))
               /\ line.kind = "" \/ line.kind \in IF r.event = "OwnerChanged" THEN Causes ELSE {"birth"}
               /\ x.floor > 0 => line.kind \in {"request", ""}
          [] event = "ownership.lost" -> On(None) /\ line.epoch = a.owner
          [] event = "policy.applied" -> On(None) /\ line.limit = a.limit
          [] event = "key.rotated" -> On(a.incumbent) /\ line.epoch = a.epoch
          [] event \in {"key.expired", "security.key_compromise_suspected", "ownership.conflict"} -> On(None)
          [] event = "reattach.attempt" -> On(x.on) /\ line.kind = x.kind /\ line.attempts = a.attempts
          [] event = "transport.switch_failed" -> On(x.on) /\ line.here = x.on
          [] OTHER -> FALSE

Listed(r, reason) == IF r.reasons = {} THEN reason = "" ELSE reason \in r.reasons

-----------------------------------------------------------------------------
(* Behaviour: the first event of a row takes the row, the others only show it. *)

TraceInit == \E t \in DOMAIN Traces :
  /\ trace = t /\ l = 1 /\ unshown = {} /\ again = Nothing /\ row = "0"
  /\ s = LET first == Traces[t].lines[1]
         IN Birth(Traces[t].end, IF first.limit > 0 THEN first.limit ELSE 1)
  /\ done = Begin /\ by = Traces[t].lines[1].node /\ fenced = FALSE /\ served = 0

More == l <= Len(Lines)

Created == /\ l = 1 /\ More
           /\ Line.event = "session.created" /\ Line.row = "0" /\ Line.version = 1 /\ Line.owner = 1 /\ Line.lane = "S"
           /\ Line.from = "BIRTH" /\ Line.to = "BIRTH" /\ Line.reason = "" /\ Line.transport = None
           /\ Line.kind = s.role /\ Line.limit = s.limit
           /\ l' = 2
           /\ UNCHANGED <<s, again, row, trace, unshown, done, by, fenced, served>>

\* One node acts under a term, until it loses the session; whoever acts then has a term of its own. What the node had
\* decided before the loss, and was on its way to the store then, may count (early). Nobody adopts what it owns itself,
\* and only the former owner starts anew.
MayAct(r) == IF r.event # "OwnerChanged" THEN Line.node = by /\ (fenced => Line.early)
             ELSE CASE Claim(r) = "restart" -> Line.node = by
                    [] Claim(r) \in {"orphan", "superseded"} -> Line.node # by
                    [] OTHER -> TRUE

\* Where the owners' records are here too: what a client accepts, an owner granted, and never one that was replaced by
\* another whose grant the client accepted before.
Served == IF Line.event # "reattach.result" \/ Line.granted = -1 THEN served' = served
          ELSE Line.granted >= served /\ served' = Line.granted

Step == /\ l > 1 /\ More /\ unshown = {}
        /\ \E r \in {q \in Rows : q.id = Line.row /\ Listed(q, Line.reason)} :
             \E x \in IF again = Nothing THEN InputsOf(r) ELSE {again} :
               /\ (again # Nothing \/ Valid(x)) = TRUE
               /\ s.state \in r.from /\ r.event = x.event
               /\ r.event = "OwnerChanged" => x.owner = s.owner + 1
               /\ MayAct(r) = TRUE
               /\ Take(r, x)
               /\ \E event \in Shown(r) : /\ Fits(Line, event, r, x, Line.reason, s, s') = TRUE
                                          /\ unshown' = Shown(r) \ {event}
               /\ done' = [id |-> r.id, x |-> x, reason |-> Line.reason, before |-> s]
               /\ fenced' = (r.id = Loss \/ (fenced /\ r.event # "OwnerChanged"))
        /\ by' = Line.node /\ Served
        /\ l' = l + 1
        /\ UNCHANGED trace

Show == /\ More /\ unshown # {} /\ Line.node = by /\ Served
        /\ \E event \in unshown : /\ Fits(Line, event, RowOf[done.id], done.x, done.reason, done.before, s) = TRUE
                               /\ unshown' = unshown \ {event}
        /\ l' = l + 1
        /\ UNCHANGED <<s, again, row, trace, done, by, fenced>>

\* Where the lane of the node may have lost lines (its process was replaced, or its journal is not there), attempts may
\* begin and end unseen.
Silent == /\ Traces[trace].silent /\ l > 1 /\ More /\ unshown = {} /\ again = Nothing /\ ~fenced
          /\ \E id \in Attempts, kind \in Kinds \cup {None}, on \in {Line.transport, s.try.on} :
               LET r == RowOf[id]
                   x == [Nothing EXCEPT !.event = r.event, !.on = on, !.kind = kind]
               IN /\ on # None /\ (kind = None) = (id = "17") /\ s.state \in r.from /\ Valid(x) = TRUE
                  /\ Take(r, x)
          /\ UNCHANGED <<trace, l, unshown, done, by, fenced, served>>

TraceNext == Created \/ Step \/ Show \/ Silent
TraceSpec == TraceInit /\ [][TraceNext]_traceVars

-----------------------------------------------------------------------------
(* Verdict. *)

\* A violation says that the module explains the whole trace. With many traces in one run the violation of one would end
\* the run, so Report prints it instead, and how far each trace was explained.
NotAccepted == ~(l > Len(Lines) /\ (Traces[trace].cut \/ (unshown = {} /\ again = Nothing)))

FarthestOf(t) == 1 + t
ASSUME \A t \in DOMAIN Traces : TLCSet(FarthestOf(t), 0)
Report == /\ IF l <= TLCGet(FarthestOf(trace)) THEN TRUE
             ELSE /\ TLCSet(FarthestOf(trace), l)
                  /\ PrintT(<<"at", trace, l, s.state, s.version, s.epoch, s.owner, s.bound, s.incumbent, s.attempts, s.limit,
                              s.try.kind, s.try.on, row, again.event, by, IF fenced THEN 1 ELSE 0, served, unshown>>)
          /\ IF NotAccepted THEN TRUE ELSE PrintT(<<"explained", trace>>)
=============================================================================
