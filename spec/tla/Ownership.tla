----------------------------- MODULE Ownership -----------------------------
(***************************************************************************)
(* Who may act for one session in a cluster of gateways: one record in a   *)
(* linearizable store, leases on clocks that drift, takeover by the        *)
(* client's own request, and what the client accepts. A design's model: it *)
(* says what gateways that share a store must do.                          *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, Sequences, TLC

CONSTANTS
  Node,       \* gateways
  First,      \* the gateway of the birth; the others are interchangeable
  Lease,      \* ticks that a lease lasts by the store's clock
  Margin,     \* ticks by which a gateway stops earlier, by its own clock
  Drift,      \* whether a gateway's clock may lose one tick in any Lease ticks
  Attempts,   \* requests that the client may send, each with a nonce of its own
  Ttl,        \* ticks without an owner after which a session is swept
  Faults,     \* kinds of faults: subset of {"crash", "cut", "pause", "drain", "unsure"}
  MaxFaults,  \* faults in one behaviour
  Calm,       \* TRUE (liveness): renewals are prompt, the client asks only when nothing it asked can still help
  Noting      \* TRUE (safety): the last action is noted, outside the view

VARIABLES
  rec,     \* the record in the store; term counts its owners, mark is the highest nonce accepted
  own,     \* per gateway: what it holds in memory; base is the record that it last knew to be stored
  lease,   \* per gateway: ticks left at the store
  dl,      \* per gateway: ticks left by its own clock
  ans,     \* per gateway: what a granted renewal, still on its way, leaves of the deadline (0: none)
  cool,    \* per gateway: ticks until its clock may lose another one
  cut,     \* per gateway: no way to the store; all cut off: the store is down
  paused,  \* per gateway: it takes no step, time goes on
  hand,    \* per gateway: the keys of a packet that was checked before the pause and is sent after it
  drain,   \* per gateway: it takes no more requests
  job,     \* per gateway: a transaction between its reading and its writing
  mark,    \* per gateway: highest nonce in its local journal, which survives a crash
  client,  \* highest epoch and version accepted, and the exchange whose keys it uses
  reqs,    \* all requests sent; anybody may deliver them, at any time, more than once
  idle,    \* ticks for which the record has had no living owner, at most Ttl
  stale,   \* per gateway: ticks since another owner replaced it unnoticed
  faults,  \* faults so far
  did      \* the action taken last, and which record it took for the present one

state == <<rec, own, lease, dl, ans, cool, cut, paused, hand, drain, job, mark, client, reqs, idle, stale, faults>>
vars == <<state, did>>
clocks == <<lease, dl, ans, cool, idle, stale>>
world == <<cut, paused, hand, drain, faults>>

None == "none"
NoKeys == [epoch |-> 0, nonce |-> 0]
NoOwn == [term |-> 0, epoch |-> 0, ver |-> 0, bound |-> FALSE, nonce |-> 0, base |-> <<0, 0>>]
NoJob == [kind |-> None, nonce |-> 0, epoch |-> 0, ver |-> 0]
Deadline == Lease - Margin
Max(a, b) == IF a > b THEN a ELSE b
Down(x) == IF x > 0 THEN x - 1 ELSE 0

Held(n) == own[n] # NoOwn
Reaches(n) == ~paused[n] /\ ~cut[n]
Superseded(n) == Held(n) /\ (rec.st = "TERMINATED" \/ rec.owner # n \/ rec.epoch # own[n].base[1])
Waiting(n) == own[n].ver # own[n].base[2]  \* a change that is not in the store yet; at most one
Keys(n) == [epoch |-> own[n].epoch, nonce |-> own[n].nonce]

\* The path of each packet compares the gateway's own clock with the deadline.
Forwards(n) == ~paused[n] /\ own[n].bound /\ dl[n] > 0
\* What the client takes for current: sealed with the keys of the newest epoch that it accepted. Keys mix the nonce of
\* the exchange that opened the epoch.
Accepts(keys) == keys.epoch = client.epoch /\ keys.nonce = client.nonce
Active(n) == (Forwards(n) /\ Accepts(Keys(n))) \/ (hand[n] # NoKeys /\ Accepts(hand[n]))
Served == \E n \in Node : Forwards(n) /\ Accepts(Keys(n))

Note(act) == did' = IF Noting THEN [act |-> act, base |-> <<0, 0>>, heard |-> <<0, 0>>] ELSE did
Wrote(act, base, heard) == did' = IF Noting THEN [act |-> act, base |-> base, heard |-> heard] ELSE did

Init ==
  /\ rec = [owner |-> First, term |-> 1, epoch |-> 1, ver |-> 1, bound |-> First, st |-> "ATTACHED", mark |-> 0]
  /\ own = [n \in Node |-> IF n = First
                           THEN [term |-> 1, epoch |-> 1, ver |-> 1, bound |-> TRUE, nonce |-> 0, base |-> <<1, 1>>]
                           ELSE NoOwn]
  /\ lease = [n \in Node |-> IF n = First THEN Lease ELSE 0]
  /\ dl = [n \in Node |-> IF n = First THEN Deadline ELSE 0]
  /\ ans = [n \in Node |-> 0] /\ cool = [n \in Node |-> 0] /\ stale = [n \in Node |-> 0]
  /\ cut = [n \in Node |-> FALSE] /\ paused = [n \in Node |-> FALSE] /\ drain = [n \in Node |-> FALSE]
  /\ hand = [n \in Node |-> NoKeys] /\ job = [n \in Node |-> NoJob] /\ mark = [n \in Node |-> 0]
  /\ client = [epoch |-> 1, ver |-> 1, nonce |-> 0]
  /\ reqs = <<>> /\ idle = 0 /\ faults = 0
  /\ did = [act |-> None, base |-> <<0, 0>>, heard |-> <<0, 0>>]

-----------------------------------------------------------------------------
(* The client. *)

\* For liveness only: may this request still bring the session back?
Able(n) == Reaches(n) /\ ~drain[n]
Hope(k) == LET r == reqs[k] IN
  IF r.answer # <<0, 0>> THEN r.answer[1] > client.epoch /\ Held(r.to) /\ own[r.to].nonce = k
  ELSE \/ Held(r.to) /\ own[r.to].nonce = k
       \/ r.took = 0 /\ k > rec.mark /\ k > mark[r.to] /\ k > own[r.to].nonce /\ Able(r.to)
LastAsked == IF Len(reqs) = 0 THEN None ELSE reqs[Len(reqs)].to
MayAsk(n) == IF Calm THEN ~Served /\ n # LastAsked /\ \A k \in DOMAIN reqs : ~Hope(k) ELSE TRUE

Ask(n) ==
  /\ Len(reqs) < Attempts /\ MayAsk(n) = TRUE
  /\ reqs' = Append(reqs, [to |-> n, epoch |-> client.epoch, ver |-> client.ver, took |-> 0, answer |-> <<0, 0>>])
  /\ Note("ask")
  /\ UNCHANGED <<rec, own, job, mark, client, clocks, world>>

Accept(k) ==
  /\ reqs[k].answer[1] > client.epoch
  /\ client' = [epoch |-> reqs[k].answer[1], ver |-> reqs[k].answer[2], nonce |-> k]
  /\ Note("accept")
  /\ UNCHANGED <<rec, own, job, mark, reqs, clocks, world>>

-----------------------------------------------------------------------------
(* A request at a gateway. Its proof is of the session's keys and names the gateway that it is for. *)

Mine(n, k) == reqs[k].to = n
Forget(n) == own' = [own EXCEPT ![n] = NoOwn] /\ dl' = [dl EXCEPT ![n] = 0] /\ ans' = [ans EXCEPT ![n] = 0]
             /\ cool' = [cool EXCEPT ![n] = 0] /\ stale' = [stale EXCEPT ![n] = 0]

\* Not the owner: read the record, then take over by compare-and-swap, without waiting for anybody's lease.
Read(n, k) ==
  /\ Reaches(n) /\ ~drain[n] /\ ~Held(n) /\ job[n] = NoJob /\ Mine(n, k)
  /\ rec.st # "TERMINATED"
  /\ k > rec.mark /\ k > mark[n]
  /\ job' = [job EXCEPT ![n] = [kind |-> "take", nonce |-> k, epoch |-> rec.epoch, ver |-> rec.ver]]
  /\ Note("read")
  /\ UNCHANGED <<rec, own, mark, client, reqs, clocks, world>>

Unchanged(n) == rec.epoch = job[n].epoch /\ rec.ver = job[n].ver
Taken(n, r) == [owner |-> n, term |-> rec.term + 1, epoch |-> Max(rec.epoch, r.epoch) + 1,
                ver |-> Max(rec.ver, r.ver) + 1, bound |-> None, st |-> "RECOVERING", mark |-> job[n].nonce]
Fresh(n) == [term |-> rec'.term, epoch |-> rec'.epoch, ver |-> rec'.ver, bound |-> FALSE,
             nonce |-> job[n].nonce, base |-> <<rec'.epoch, rec'.ver>>]

\* sure is FALSE if the answer is lost: the store has it, the gateway knows nothing and holds nothing.
Take(n, sure) ==
  LET k == job[n].nonce IN
  /\ job[n].kind = "take" /\ Reaches(n) /\ Unchanged(n) = TRUE
  /\ rec' = Taken(n, reqs[k])
  /\ own' = IF sure THEN [own EXCEPT ![n] = Fresh(n)] ELSE own
  /\ lease' = [lease EXCEPT ![n] = Lease] /\ dl' = IF sure THEN [dl EXCEPT ![n] = Deadline] ELSE dl
  /\ reqs' = [reqs EXCEPT ![k].took = @ + 1]
  /\ job' = [job EXCEPT ![n] = NoJob] /\ idle' = 0
  /\ Wrote("take", <<job[n].epoch, job[n].ver>>, <<reqs[k].epoch, reqs[k].ver>>)
  /\ faults' = IF sure THEN faults ELSE faults + 1
  /\ UNCHANGED <<mark, client, ans, cool, stale, cut, paused, hand, drain>>

Lose(n) ==  \* the loser rejects, nothing changes
  /\ job[n] # NoJob /\ Reaches(n) /\ Unchanged(n) = FALSE
  /\ job' = [job EXCEPT ![n] = NoJob]
  /\ Note("lose")
  /\ UNCHANGED <<rec, own, mark, client, reqs, clocks, world>>

\* After a takeover the owner binds anew, and answers. Its own changes are written behind.
Attach(n) ==
  /\ ~paused[n] /\ Held(n) /\ ~own[n].bound /\ dl[n] > 0 /\ ~Waiting(n)
  /\ own' = [own EXCEPT ![n].bound = TRUE, ![n].ver = @ + 1]
  /\ reqs' = [reqs EXCEPT ![own[n].nonce].answer = <<own[n].epoch, own[n].ver + 1>>]
  /\ Note("attach")
  /\ UNCHANGED <<rec, job, mark, client, clocks, world>>

\* The owner moves the binding to where the request came from: a new epoch, in its journal, not yet in the store. A
\* request that names a newer epoch or version than the owner's shows that it was replaced: it waits for its watch.
Switch(n, k) ==
  /\ ~paused[n] /\ ~drain[n] /\ own[n].bound /\ dl[n] > 0 /\ ~Waiting(n) /\ Mine(n, k)
  /\ k > own[n].nonce /\ k > mark[n]
  /\ reqs[k].epoch <= own[n].epoch /\ reqs[k].ver <= own[n].ver
  /\ LET epoch == Max(own[n].epoch, reqs[k].epoch) + 1 IN
     /\ own' = [own EXCEPT ![n].epoch = epoch, ![n].ver = @ + 1, ![n].nonce = k]
     /\ reqs' = [reqs EXCEPT ![k].took = @ + 1, ![k].answer = <<epoch, own[n].ver + 1>>]
  /\ mark' = [mark EXCEPT ![n] = k]
  /\ Note("switch")
  /\ UNCHANGED <<rec, job, client, clocks, world>>

\* A request that fails its proof.
Forged(n) ==
  /\ ~paused[n]
  /\ mark' = mark
  /\ Note("forged")
  /\ UNCHANGED <<rec, own, job, client, reqs, clocks, world>>

-----------------------------------------------------------------------------
(* The owner and the store. *)

Stored(n) == <<rec.epoch, rec.ver>> = own[n].base

Flush(n) ==
  /\ Reaches(n) /\ Held(n) /\ Waiting(n) /\ Stored(n) = TRUE
  /\ rec' = [rec EXCEPT !.epoch = own[n].epoch, !.ver = own[n].ver, !.bound = n, !.st = "ATTACHED",
                        !.mark = Max(@, own[n].nonce)]
  /\ own' = [own EXCEPT ![n].base = <<own[n].epoch, own[n].ver>>]
  /\ Wrote("flush", own[n].base, <<0, 0>>)
  /\ UNCHANGED <<job, mark, client, reqs, clocks, world>>

\* Termination is in the store before anybody hears of it.
End(n) ==
  /\ Reaches(n) /\ Held(n) /\ dl[n] > 0 /\ ~Waiting(n) /\ Stored(n) = TRUE
  /\ Calm => ~Served /\ Len(reqs) = Attempts /\ \A k \in DOMAIN reqs : ~Hope(k)
  /\ rec' = [rec EXCEPT !.ver = @ + 1, !.bound = None, !.st = "TERMINATED"]
  /\ Forget(n)
  /\ Wrote("end", own[n].base, <<0, 0>>)
  /\ UNCHANGED <<job, mark, client, reqs, lease, idle, world>>

\* The watch, or a transaction that failed, tells of another owner or the end.
Watch(n) ==
  /\ Reaches(n) /\ Superseded(n)
  /\ Forget(n)
  /\ Note("watch")
  /\ UNCHANGED <<rec, job, mark, client, reqs, lease, idle, world>>

\* A renewal counts from before it was asked for, and only if the record, read with it, is still this owner's. An answer
\* that leaves no more than the gateway has says nothing and is left out.
Grant(n) ==
  /\ Reaches(n) /\ Held(n) /\ lease[n] > 0
  /\ lease' = [lease EXCEPT ![n] = Lease]
  /\ ans' = [ans EXCEPT ![n] = IF Superseded(n) \/ dl[n] >= Deadline THEN 0 ELSE Deadline]
  /\ Note("grant")
  /\ UNCHANGED <<rec, own, dl, cool, idle, stale, job, mark, client, reqs, world>>

\* An answer after the deadline is too late: first fence.
Learn(n) ==
  /\ ~paused[n] /\ Held(n) /\ ans[n] > 0
  /\ dl[n] > 0
  /\ dl' = [dl EXCEPT ![n] = ans[n]] /\ ans' = [ans EXCEPT ![n] = 0]
  /\ Note("learn")
  /\ UNCHANGED <<rec, own, lease, cool, idle, stale, job, mark, client, reqs, world>>

Fence(n) ==
  /\ ~paused[n] /\ Held(n) /\ dl[n] = 0
  /\ Forget(n)
  /\ Note("fence")
  /\ UNCHANGED <<rec, job, mark, client, reqs, lease, idle, world>>

\* Any gateway sweeps: it reads a record whose owner's lease is gone for Ttl, then ends it by compare-and-swap.
SweepRead(n) ==
  /\ Reaches(n) /\ job[n] = NoJob /\ rec.st # "TERMINATED" /\ idle = Ttl /\ lease[rec.owner] = 0
  /\ job' = [job EXCEPT ![n] = [kind |-> "sweep", nonce |-> 0, epoch |-> rec.epoch, ver |-> rec.ver]]
  /\ Note("sweep.read")
  /\ UNCHANGED <<rec, own, mark, client, reqs, clocks, world>>

Sweep(n) ==
  /\ job[n].kind = "sweep" /\ Reaches(n) /\ Unchanged(n) = TRUE
  /\ rec' = [rec EXCEPT !.ver = @ + 1, !.bound = None, !.st = "TERMINATED"]
  /\ job' = [job EXCEPT ![n] = NoJob]
  /\ Wrote("sweep", <<job[n].epoch, job[n].ver>>, <<0, 0>>)
  /\ UNCHANGED <<own, mark, client, reqs, clocks, world>>

-----------------------------------------------------------------------------
(* Time and faults. *)

Losing == IF Drift THEN SUBSET {n \in Node : dl[n] > 0 /\ cool[n] = 0} ELSE {{}}
Prompt(n) == Reaches(n) /\ Held(n) /\ ~Superseded(n) => dl[n] >= Deadline

\* Fencing is urgent: a gateway that runs does not let its deadline pass.
Tick ==
  /\ \A n \in Node : paused[n] \/ ~Held(n) \/ dl[n] > 0
  /\ Calm => \A n \in Node : Prompt(n)
  /\ \E slow \in Losing :
     /\ dl' = [n \in Node |-> IF n \in slow THEN dl[n] ELSE Down(dl[n])]
     /\ ans' = [n \in Node |-> IF n \in slow THEN ans[n] ELSE Down(ans[n])]
     /\ cool' = [n \in Node |-> IF dl'[n] = 0 THEN 0 ELSE IF n \in slow THEN Lease - 1 ELSE Down(cool[n])]
  /\ lease' = [n \in Node |-> Down(lease[n])]
  /\ idle' = IF rec.st = "TERMINATED" THEN 0
             ELSE IF lease[rec.owner] > 0 \/ idle = Ttl THEN idle ELSE idle + 1
  /\ stale' = [n \in Node |-> IF Superseded(n) /\ stale[n] < Lease THEN stale[n] + 1 ELSE stale[n]]
  /\ Note("tick")
  /\ UNCHANGED <<rec, own, job, mark, client, reqs, world>>

Fault(kind) == kind \in Faults /\ faults < MaxFaults /\ faults' = faults + 1

\* A crash and, at once, a new process without memory; the lease runs on at the store.
Crash(n) ==
  /\ Fault("crash")
  /\ Forget(n)
  /\ job' = [job EXCEPT ![n] = NoJob] /\ hand' = [hand EXCEPT ![n] = NoKeys]
  /\ paused' = [paused EXCEPT ![n] = FALSE] /\ drain' = [drain EXCEPT ![n] = FALSE]
  /\ Note("crash")
  /\ UNCHANGED <<rec, mark, client, reqs, lease, idle, cut>>

Cut(n) ==
  /\ ~cut[n] /\ Fault("cut") /\ cut' = [cut EXCEPT ![n] = TRUE]
  /\ Note("cut")
  /\ UNCHANGED <<rec, own, job, mark, client, reqs, clocks, paused, hand, drain>>

Heal(n) ==
  /\ cut[n] /\ cut' = [cut EXCEPT ![n] = FALSE]
  /\ Note("heal")
  /\ UNCHANGED <<rec, own, job, mark, client, reqs, clocks, paused, hand, drain, faults>>

\* The process stops, at worst between the check of a packet and its sending.
Pause(n) ==
  /\ ~paused[n] /\ Fault("pause") /\ paused' = [paused EXCEPT ![n] = TRUE]
  /\ hand' = [hand EXCEPT ![n] = IF Forwards(n) THEN Keys(n) ELSE NoKeys]
  /\ Note("pause")
  /\ UNCHANGED <<rec, own, job, mark, client, reqs, clocks, cut, drain>>

Wake(n) ==
  /\ paused[n] /\ paused' = [paused EXCEPT ![n] = FALSE] /\ hand' = [hand EXCEPT ![n] = NoKeys]
  /\ Note("wake")
  /\ UNCHANGED <<rec, own, job, mark, client, reqs, clocks, cut, drain, faults>>

Drain(n) ==
  /\ ~drain[n] /\ Fault("drain") /\ drain' = [drain EXCEPT ![n] = TRUE]
  /\ Note("drain")
  /\ UNCHANGED <<rec, own, job, mark, client, reqs, clocks, cut, paused, hand>>

\* The end of a drain: stop, and only then give the lease back.
Release(n) ==
  /\ drain[n] /\ Held(n) /\ Reaches(n)
  /\ lease' = [lease EXCEPT ![n] = 0]
  /\ Forget(n)
  /\ Note("release")
  /\ UNCHANGED <<rec, job, mark, client, reqs, idle, world>>

Unsure(n) == "unsure" \in Faults /\ faults < MaxFaults /\ Take(n, FALSE)

Next ==
  \/ Tick
  \/ \E k \in DOMAIN reqs : Accept(k) \/ \E n \in Node : Read(n, k) \/ Switch(n, k)
  \/ \E n \in Node : \/ Ask(n) \/ Take(n, TRUE) \/ Unsure(n) \/ Lose(n) \/ Attach(n) \/ Forged(n) \/ Flush(n) \/ End(n)
                     \/ Watch(n) \/ Grant(n) \/ Learn(n) \/ Fence(n) \/ SweepRead(n) \/ Sweep(n)
                     \/ Crash(n) \/ Cut(n) \/ Heal(n) \/ Pause(n) \/ Wake(n) \/ Drain(n) \/ Release(n)

Spec == Init /\ [][Next]_vars
Seen == state

\* Tells each action when it is first taken (an action constraint that forbids nothing): actions never taken are a gap.
ActionsTold == 1
ASSUME TLCSet(ActionsTold, {})
Tell == IF did'.act \in TLCGet(ActionsTold) THEN TRUE
        ELSE TLCSet(ActionsTold, TLCGet(ActionsTold) \cup {did'.act}) /\ PrintT(<<"action", did'.act>>)
Alike == Permutations(Node \ {First})

-----------------------------------------------------------------------------
(* Promises. *)

TypeOK ==
  /\ rec.owner \in Node /\ rec.st \in {"ATTACHED", "RECOVERING", "TERMINATED"} /\ rec.bound \in Node \cup {None}
  /\ (rec.st = "ATTACHED") = (rec.bound # None)
  /\ \A n \in Node : /\ lease[n] \in 0..Lease /\ dl[n] \in 0..Lease /\ ans[n] \in 0..Lease /\ stale[n] \in 0..Lease
                     /\ Held(n) => own[n].ver - own[n].base[2] \in {0, 1}
  /\ idle \in 0..Ttl /\ faults <= MaxFaults /\ Len(reqs) <= Attempts

\* P-C1: the client would accept packets as current from one gateway at most.
NO_DUAL_ACTIVE == Cardinality({n \in Node : Active(n)}) <= 1
\* P-C2: who forwards has its lease at the store, and was replaced less than a lease ago if at all.
ONLY_OWNER_FORWARDS == \A n \in Node : Forwards(n) => lease[n] > 0 /\ stale[n] < Lease
\* P-C3
EPOCH == [][LET next == IF did'.act = "take" THEN Max(rec.epoch, did'.heard[1]) + 1 ELSE rec.epoch + 1 IN
            /\ rec'.epoch \in (IF did'.act = "take" THEN {next} ELSE {rec.epoch, next})
            /\ rec'.term = rec.term + (IF did'.act = "take" THEN 1 ELSE 0)]_rec
VERSION == [][rec'.ver = Max(rec.ver, did'.heard[2]) + 1]_rec
\* P-C4: what is written replaces the very record that the writer knew.
COMMIT_FENCED == [][did'.base = <<rec.epoch, rec.ver>>]_rec
\* P-C5
BINDING_NOT_INHERITED ==
  [][did'.act = "take" \/ rec'.owner # rec.owner => rec'.bound = None /\ rec'.st # "ATTACHED"]_rec
\* P-C6
NONCE_ONCE == \A k \in DOMAIN reqs : reqs[k].took <= 1
NONCE_PROVED == rec.mark <= Len(reqs) /\ \A n \in Node : mark[n] <= Len(reqs)
\* P-S5
ABSORBING == [][rec.st # "TERMINATED"]_rec
\* No two gateways act under one term, so (term, version) names a commit.
ONE_HISTORY == \A m, n \in Node : m # n /\ Held(m) /\ Held(n) => own[m].term # own[n].term
SWEEP_SPARES_LIVING == [][did'.act = "sweep" => ~Held(rec.owner) \/ dl[rec.owner] = 0]_rec
\* What the client knows never goes back.
CLIENT_ONWARD == [][client'.epoch > client.epoch /\ client'.ver > client.ver]_client

\* Not promised: these do not hold, and tests say so.
VERSION_NAMES_A_COMMIT ==
  \A m, n \in Node : m # n /\ Held(m) /\ Held(n) => <<own[m].epoch, own[m].ver>> # <<own[n].epoch, own[n].ver>>
NEVER_LATE == \A n \in Node : hand[n] # NoKeys /\ lease[n] = 0 => ~Accepts(hand[n])
ONE_FORWARDS == Cardinality({n \in Node : Forwards(n)}) <= 1

-----------------------------------------------------------------------------
(* Liveness: a gateway that from some time on is connected, runs and is not drained. All actions of Late and Soon     *)
(* happen finitely often (requests, nonces, versions and faults are bounded), so fairness of the union is fairness of *)
(* each; the fewer conditions, the smaller TLC's product.                                                             *)

Renew == \E n \in Node : Grant(n) \/ Learn(n)
Soon == \E n \in Node : Fence(n) \/ Watch(n) \/ Lose(n) \/ Ask(n)
Late == \/ \E n \in Node : Take(n, TRUE) \/ Attach(n) \/ Flush(n) \/ End(n) \/ SweepRead(n) \/ Sweep(n)
        \/ \E k \in DOMAIN reqs : Accept(k) \/ \E n \in Node : Read(n, k) \/ Switch(n, k)
Fair == WF_vars(Tick) /\ WF_vars(Renew) /\ WF_vars(Soon) /\ SF_vars(Late)
LiveSpec == Spec /\ Fair

\* P-C7
ATTEMPTS_SUFFICE == Len(reqs) < Attempts  \* so that sessions end by Ttl only, not for want of requests
RECOVERS == (\E n \in Node : <>[]Able(n)) => <>[](Served \/ rec.st = "TERMINATED")

=============================================================================
