----------------------------- MODULE Ownership -----------------------------
(***************************************************************************)
(* Who may act for one session in a cluster of gateways: one record in a   *)
(* linearizable store, a lease per gateway on clocks that drift, takeover  *)
(* by the client's own request in one write that binds the session too,    *)
(* adoption of what nobody owns any more, and what the client accepts. A   *)
(* design's model: it says what gateways that share a store must do.       *)
(***************************************************************************)
EXTENDS Integers, FiniteSets, Sequences, TLC

CONSTANTS
  Node,       \* gateways
  First,      \* the gateway of the birth; the others are interchangeable
  Lease,      \* ticks that a lease lasts by the store's clock
  Margin,     \* ticks by which a gateway stops earlier, by its own clock
  Drift,      \* whether a gateway's clock may lose one tick in any Lease ticks
  Attempts,   \* requests that the client may send, each with a nonce of its own
  Ttl,        \* ticks without a binding after which a session ends
  Faults,     \* kinds of faults: subset of {"crash", "cut", "pause", "drain", "unsure"}
  MaxFaults,  \* faults in one behaviour
  MaxTerm,    \* owners that the record may have, one after the other
  Calm,       \* TRUE (liveness): renewals are prompt, the client asks only when nothing it asked can still help
  Noting      \* TRUE (safety): the last action is noted, outside the view

VARIABLES
  rec,     \* the record in the store; term counts its owners
  own,     \* per gateway: the session as it holds it in memory; base is the record that it last knew to be stored
  lease,   \* per gateway: ticks left at the store of the lease under which it is a member (0: it is none)
  dl,      \* per gateway: ticks left by its own clock in which it may forward
  ans,     \* per gateway: what a beat that the store has, but the gateway not yet seen, leaves of the deadline (0: none)
  late,    \* per gateway: whether the watch has a change of owner to tell before that beat
  cool,    \* per gateway: ticks until its clock may lose another one
  cut,     \* per gateway: no way to the store; all cut off: the store is down
  paused,  \* per gateway: it takes no step, time goes on
  hand,    \* per gateway: the keys of a packet that was checked before the pause and is sent after it
  drain,   \* per gateway: it has told its clients to move, and takes no more sessions
  job,     \* per gateway: a transaction between its reading and its writing
  stray,   \* per gateway: one that it gave up without knowing its outcome; it takes place later, or never
  mark,    \* per gateway: highest nonce in its local journal, which survives a crash
  client,  \* highest epoch and version accepted, the exchange whose keys it uses, with which gateway; prev: keys of the
           \* epoch before, while it still receives with those
  reqs,    \* all requests sent; anybody may deliver them, at any time, more than once
  off,     \* ticks for which the session has had no binding at an owner, at most Ttl: its transport clock
  stale,   \* per gateway: ticks since another owner replaced it unnoticed
  faults,  \* faults so far
  did      \* the action taken last, and which record it took for the present one

state == <<rec, own, lease, dl, ans, late, cool, cut, paused, hand, drain, job, stray, mark, client, reqs, off,
           stale, faults>>
vars == <<state, did>>
clocks == <<lease, dl, ans, late, cool, off, stale>>
world == <<cut, paused, hand, drain, faults>>

None == "none"
NoKeys == [epoch |-> 0, nonce |-> 0]
NoOwn == [term |-> 0, epoch |-> 0, ver |-> 0, bound |-> FALSE, nonce |-> 0, asks |-> 0, base |-> <<0, 0>>]
NoJob == [kind |-> None, nonce |-> 0, base |-> <<0, 0>>]
Deadline == Lease - Margin
Max(a, b) == IF a > b THEN a ELSE b
Down(x) == IF x > 0 THEN x - 1 ELSE 0

Held(n) == own[n] # NoOwn
Granting(n) == own[n].asks # 0  \* a takeover that the store has; its gateway still waits for the answer
Reaches(n) == ~paused[n] /\ ~cut[n]
Superseded(n) == Held(n) /\ (rec.st = "TERMINATED" \/ rec.owner # n \/ rec.term # own[n].term)
Waiting(n) == own[n].ver # own[n].base[2]  \* a change that is not in the store yet; at most one
Keys(n) == [epoch |-> own[n].epoch, nonce |-> own[n].nonce]
Present == <<rec.term, rec.ver>>

\* The path of each packet compares the gateway's own clock with the deadline.
Forwards(n) == ~paused[n] /\ own[n].bound /\ dl[n] > 0
\* What the client takes for current: sealed with the keys of the newest epoch that it accepted; after a drain, with those
\* of the epoch before until it hears the new one. Keys mix the nonce of the exchange that opened the epoch.
Newest == [epoch |-> client.epoch, nonce |-> client.nonce]
Accepts(keys) == IF client.prev = NoKeys THEN keys = Newest ELSE keys = client.prev
Active(n) == (Forwards(n) /\ Accepts(Keys(n))) \/ (hand[n] # NoKeys /\ Accepts(hand[n]))
Served == \E n \in Node : Forwards(n) /\ (Keys(n) = Newest \/ Accepts(Keys(n)))

Note(act) == did' = IF Noting THEN [act |-> act, base |-> <<0, 0>>, heard |-> <<0, 0>>] ELSE did
Wrote(act, base, heard) == did' = IF Noting THEN [act |-> act, base |-> base, heard |-> heard] ELSE did

Init ==
  /\ rec = [owner |-> First, term |-> 1, epoch |-> 1, ver |-> 1, bound |-> First, st |-> "ATTACHED"]
  /\ own = [n \in Node |-> IF n = First
                           THEN [term |-> 1, epoch |-> 1, ver |-> 1, bound |-> TRUE, nonce |-> 0, asks |-> 0,
                                 base |-> <<1, 1>>]
                           ELSE NoOwn]
  /\ lease = [n \in Node |-> Lease] /\ dl = [n \in Node |-> Deadline]
  /\ ans = [n \in Node |-> 0] /\ late = [n \in Node |-> FALSE]
  /\ cool = [n \in Node |-> 0] /\ stale = [n \in Node |-> 0]
  /\ cut = [n \in Node |-> FALSE] /\ paused = [n \in Node |-> FALSE] /\ drain = [n \in Node |-> FALSE]
  /\ hand = [n \in Node |-> NoKeys] /\ job = [n \in Node |-> NoJob] /\ stray = job /\ mark = [n \in Node |-> 0]
  /\ client = [epoch |-> 1, ver |-> 1, nonce |-> 0, at |-> First, prev |-> NoKeys]
  /\ reqs = <<>> /\ off = 0 /\ faults = 0
  /\ did = [act |-> None, base |-> <<0, 0>>, heard |-> <<0, 0>>]

-----------------------------------------------------------------------------
(* The client. *)

\* For liveness only: may this request still bring the session back?
Able(n) == Reaches(n) /\ ~drain[n]
\* For liveness a request that the client gave up is too old to count; for safety it may come at any time.
Young(k) == Calm => k = Len(reqs)
\* The client raises its epoch once per request: request k asks for epoch k + 1.
Opens(k) == k + 1
Known(n, k) == reqs[k].epoch <= own[n].epoch /\ reqs[k].ver <= own[n].ver
Hope(k) == LET r == reqs[k] IN
  IF r.answer # <<0, 0>> THEN Young(k) /\ r.answer[1] > client.epoch /\ Held(r.to) /\ own[r.to].nonce = k
  ELSE IF own[r.to].asks = k THEN Young(k) /\ ~paused[r.to]
  ELSE /\ r.took = 0 /\ Young(k) /\ Able(r.to) /\ k > mark[r.to]
       /\ Opens(k) > rec.epoch
       /\ Held(r.to) /\ ~Superseded(r.to) => Known(r.to, k) /\ Opens(k) > own[r.to].epoch
LastAsked == IF Len(reqs) = 0 THEN None ELSE reqs[Len(reqs)].to
MayAsk(n) == IF Calm THEN ~Served /\ n # LastAsked /\ \A k \in DOMAIN reqs : ~Hope(k) ELSE TRUE

Ask(n) ==
  /\ Len(reqs) < Attempts /\ MayAsk(n) = TRUE
  /\ reqs' = Append(reqs, [to |-> n, epoch |-> client.epoch, ver |-> client.ver, took |-> 0, answer |-> <<0, 0>>])
  /\ Note("ask")
  /\ UNCHANGED <<rec, own, job, stray, mark, client, clocks, world>>

\* One attempt at a time: an answer to a request that was given up says nothing.
\* A gateway that told it to move is left open for receiving until the new one is heard; any other is taken for lost.
Accept(k) ==
  /\ reqs[k].answer[1] > client.epoch
  /\ k = Len(reqs)
  /\ client' = [epoch |-> reqs[k].answer[1], ver |-> reqs[k].answer[2], nonce |-> k, at |-> reqs[k].to,
                prev |-> IF drain[client.at] /\ client.at # reqs[k].to THEN Newest ELSE NoKeys]
  /\ Note("accept")
  /\ UNCHANGED <<rec, own, job, stray, mark, reqs, clocks, world>>

\* The first packet of the new epoch closes the one before.
Hear ==
  /\ client.prev # NoKeys /\ \E n \in Node : Forwards(n) /\ Keys(n) = Newest
  /\ client' = [client EXCEPT !.prev = NoKeys]
  /\ Note("hear")
  /\ UNCHANGED <<rec, own, job, stray, mark, reqs, clocks, world>>

-----------------------------------------------------------------------------
(* A request at a gateway. Its proof is of the session's keys and names the gateway that it is for. *)

Mine(n, k) == reqs[k].to = n
Drop(n) == own' = [own EXCEPT ![n] = NoOwn] /\ stale' = [stale EXCEPT ![n] = 0] /\ late' = [late EXCEPT ![n] = FALSE]
Stop(n) == dl' = [dl EXCEPT ![n] = 0] /\ ans' = [ans EXCEPT ![n] = 0] /\ cool' = [cool EXCEPT ![n] = 0]
Settle(n) == IF dl[n] = 0 \/ lease[n] = 0 THEN UNCHANGED <<lease, dl, ans, cool>>
             ELSE /\ lease' = [lease EXCEPT ![n] = Lease] /\ dl' = [dl EXCEPT ![n] = Deadline]
                  /\ ans' = [ans EXCEPT ![n] = 0] /\ cool' = [cool EXCEPT ![n] = 0]
Free(n) == Reaches(n) /\ dl[n] > 0 /\ ~drain[n] /\ ~Held(n) /\ job[n] = NoJob /\ rec.st # "TERMINATED"
Plan(n, kind, k) == job' = [job EXCEPT ![n] = [kind |-> kind, nonce |-> k, base |-> Present]]

\* A new owner: the next term, no binding.
Claimed(n) == [owner |-> n, term |-> rec.term + 1, epoch |-> rec.epoch, ver |-> rec.ver + 1, bound |-> None,
               st |-> "RECOVERING"]
\* By the client's request: in the same write the binding that it asks for, in the epoch that it asks for, so that
\* neither this request nor one that the client gave up before counts any more. Two changes of the session, so two
\* versions above all that store and client know.
Taken(n, k) == [Claimed(n) EXCEPT !.epoch = Opens(k), !.ver = Max(rec.ver, reqs[k].ver) + 2, !.bound = n,
                                  !.st = "ATTACHED"]
\* What a gateway holds of a record that it wrote: it uses no binding before it knows that the write took place.
Fresh(r, k) == [term |-> r.term, epoch |-> r.epoch, ver |-> r.ver, bound |-> FALSE, nonce |-> k, asks |-> k,
                base |-> <<r.term, r.ver>>]

\* Not the owner: read the record, open the request with its keys, then take over by compare-and-swap, without waiting
\* for anybody's lease. What fails because the record has changed uses up no nonce: the request may come again.
Read(n, k) ==
  /\ Free(n) /\ Mine(n, k) /\ Young(k) /\ k > mark[n] /\ Opens(k) > rec.epoch
  /\ Plan(n, "take", k)
  /\ Note("read")
  /\ UNCHANGED <<rec, own, stray, mark, client, reqs, clocks, world>>

\* Nobody's: the lease of its owner is gone, or it is this gateway's own, from before it stopped or by a takeover whose
\* outcome it did not know.
AdoptRead(n) ==
  /\ Free(n) /\ (lease[rec.owner] = 0 \/ rec.owner = n) = TRUE
  /\ Plan(n, "adopt", 0)
  /\ Note("adopt.read")
  /\ UNCHANGED <<rec, own, stray, mark, client, reqs, clocks, world>>

Unchanged(n) == Present = job[n].base
Swap(n) == job[n] # NoJob /\ rec.term < MaxTerm
Binds(k) == reqs' = [reqs EXCEPT ![k].took = @ + 1] /\ off' = 0

\* One write: the change of owner and the binding. It is on its way since the record was read: it takes place also while
\* its gateway is paused or cut off.
Take(n) ==
  LET k == job[n].nonce IN
  /\ Swap(n) /\ job[n].kind = "take" /\ Unchanged(n) = TRUE
  /\ rec' = Taken(n, k)
  /\ own' = [own EXCEPT ![n] = Fresh(Taken(n, k), k)]
  /\ Binds(k)
  /\ job' = [job EXCEPT ![n] = NoJob]
  /\ Wrote("take", job[n].base, <<Opens(k), reqs[k].ver>>)
  /\ UNCHANGED <<stray, mark, client, lease, dl, ans, late, cool, stale, world>>

\* The store said so: the keys of the new epoch are used, and the client is told. Another owner may have come meanwhile.
\* No answer until the lease is over: Fence.
Grant(n) ==
  LET k == own[n].asks IN
  /\ ~paused[n] /\ Granting(n)
  /\ own' = [own EXCEPT ![n].bound = TRUE, ![n].asks = 0]
  /\ reqs' = [reqs EXCEPT ![k].answer = <<own[n].epoch, own[n].ver>>]
  /\ Note("grant")
  /\ UNCHANGED <<rec, job, stray, mark, client, clocks, world>>

\* No request, so the client's word is not known. The transport clock goes on from the former owner's loss.
Adopt(n) ==
  /\ Swap(n) /\ job[n].kind = "adopt" /\ Unchanged(n) = TRUE
  /\ Reaches(n) /\ dl[n] > 0
  /\ rec' = Claimed(n)
  /\ own' = [own EXCEPT ![n] = Fresh(Claimed(n), 0)]
  /\ off' = off
  /\ job' = [job EXCEPT ![n] = NoJob]
  /\ Wrote("adopt", job[n].base, <<0, 0>>)
  /\ UNCHANGED <<stray, mark, client, reqs, lease, dl, ans, late, cool, stale, world>>

Lose(n) ==  \* the loser rejects, nothing changes
  /\ job[n] # NoJob /\ Reaches(n) /\ (Unchanged(n) = FALSE \/ rec.term = MaxTerm)
  /\ job' = [job EXCEPT ![n] = NoJob]
  /\ Note("lose")
  /\ UNCHANGED <<rec, own, stray, mark, client, reqs, clocks, world>>

\* The outcome is not known, at the latest when the lease is over. The gateway acts on neither: it holds nothing, and
\* refuses the request. Whatever it sent may reach the store even now.
GiveUp(n) ==
  /\ job[n] # NoJob
  /\ stray' = [stray EXCEPT ![n] = job[n]]
  /\ job' = [job EXCEPT ![n] = NoJob]
Doubt(n) ==
  /\ ~paused[n] /\ GiveUp(n)
  /\ mark' = IF job[n].kind = "take" THEN [mark EXCEPT ![n] = job[n].nonce] ELSE mark
  /\ Note("doubt")
  /\ UNCHANGED <<rec, own, client, reqs, clocks, cut, paused, hand, drain>>

\* It reaches the store, and the record is still the one that it was made for: the owner does not know that it is one.
Land(n) ==
  LET s == stray[n]
      k == s.nonce IN
  /\ s # NoJob /\ (s.base = Present) = TRUE /\ rec.term < MaxTerm
  /\ stray' = [stray EXCEPT ![n] = NoJob]
  /\ IF s.kind = "take"
     THEN rec' = Taken(n, k) /\ Binds(k) /\ Wrote("land", s.base, <<Opens(k), reqs[k].ver>>)
     ELSE rec' = Claimed(n) /\ UNCHANGED <<reqs, off>> /\ Wrote("land", s.base, <<0, 0>>)
  /\ UNCHANGED <<own, job, mark, client, lease, dl, ans, late, cool, stale, world>>

\* The owner binds the session to where the request came from, be it a switch or the first binding after an adoption: a
\* new epoch, in its journal, not yet in the store. A request that names a newer epoch or version than the owner's shows
\* that it was replaced, or adopted less than the client knows: it does not serve it.
Reattach(n, k) ==
  /\ ~paused[n] /\ Held(n) /\ (own[n].bound => ~drain[n]) /\ dl[n] > 0 /\ ~Waiting(n) /\ ~Granting(n)
  /\ Mine(n, k) /\ Young(k) /\ k > mark[n]
  /\ Known(n, k) = TRUE
  /\ Opens(k) > own[n].epoch
  /\ own' = [own EXCEPT ![n].epoch = Opens(k), ![n].ver = @ + 1, ![n].nonce = k, ![n].bound = TRUE]
  /\ reqs' = [reqs EXCEPT ![k].took = @ + 1, ![k].answer = <<Opens(k), own[n].ver + 1>>]
  /\ mark' = [mark EXCEPT ![n] = k]
  /\ off' = IF Superseded(n) THEN off ELSE 0
  /\ Note("reattach")
  /\ UNCHANGED <<rec, job, stray, client, lease, dl, ans, late, cool, stale, world>>

\* A request that fails its proof.
Forged(n) ==
  /\ ~paused[n]
  /\ mark' = mark
  /\ Note("forged")
  /\ UNCHANGED <<rec, own, job, stray, client, reqs, clocks, world>>

-----------------------------------------------------------------------------
(* The owner and the store. *)

Stored(n) == Present = own[n].base

Flush(n) ==
  /\ Reaches(n) /\ Held(n) /\ Waiting(n) /\ Stored(n) = TRUE
  /\ rec' = [rec EXCEPT !.epoch = own[n].epoch, !.ver = own[n].ver, !.bound = n, !.st = "ATTACHED"]
  /\ own' = [own EXCEPT ![n].base = <<own[n].term, own[n].ver>>]
  /\ Wrote("flush", own[n].base, <<0, 0>>)
  /\ UNCHANGED <<job, stray, mark, client, reqs, clocks, world>>

\* Termination is in the store before anybody hears of it.
End(n) ==
  /\ Reaches(n) /\ Held(n) /\ dl[n] > 0 /\ ~Waiting(n) /\ ~Granting(n) /\ Stored(n) = TRUE
  /\ Calm => off = Ttl
  /\ rec' = [rec EXCEPT !.ver = @ + 1, !.bound = None, !.st = "TERMINATED"]
  /\ Drop(n) /\ Settle(n)
  /\ Wrote("end", own[n].base, <<0, 0>>)
  /\ UNCHANGED <<job, stray, mark, client, reqs, off, world>>

\* The watch, or a transaction that failed, tells of another owner or the end.
Watch(n) ==
  /\ Reaches(n) /\ Superseded(n)
  /\ Drop(n) /\ Settle(n)
  /\ Note("watch")
  /\ UNCHANGED <<rec, job, stray, mark, client, reqs, off, world>>

-----------------------------------------------------------------------------
(* A gateway's lease. A gateway without the session renews in time (Watch, Tick): its clocks would only stand for        *)
(* themselves. With the session it may renew late, or never.                                                          *)

Idle(n) == Reaches(n) /\ ~Held(n) /\ dl[n] > 0

\* A renewal writes a beat, which comes back by the same ordered watch as changes of owners, and counts from before it
\* was asked for. late: a change of this gateway's session is on its way before it.
Beat(n) ==
  /\ Reaches(n) /\ ~Idle(n) /\ lease[n] > 0 /\ dl[n] > 0 /\ (dl[n] < Deadline \/ Superseded(n))
  /\ lease' = [lease EXCEPT ![n] = Lease]
  /\ ans' = [ans EXCEPT ![n] = Deadline] /\ late' = [late EXCEPT ![n] = Superseded(n)]
  /\ Note("beat")
  /\ UNCHANGED <<rec, own, dl, cool, off, stale, job, stray, mark, client, reqs, world>>

\* The deadline moves when the beat is seen, so after everything before it. Behind the deadline it is too late: first fence.
Learn(n) ==
  /\ ~paused[n] /\ ans[n] > 0 /\ ~late[n]
  /\ dl[n] > 0
  /\ dl' = [dl EXCEPT ![n] = ans[n]] /\ ans' = [ans EXCEPT ![n] = 0]
  /\ Note("learn")
  /\ UNCHANGED <<rec, own, lease, late, cool, off, stale, job, stray, mark, client, reqs, world>>

Fence(n) ==
  /\ ~paused[n] /\ Held(n) /\ dl[n] = 0
  /\ Drop(n)
  /\ Note("fence")
  /\ UNCHANGED <<rec, job, stray, mark, client, reqs, lease, dl, ans, cool, off, world>>

\* A process that has stopped, or whose predecessor is proved dead, need not wait for the lease to run out.
Ended(n) == ~Held(n) /\ dl[n] = 0 /\ job[n] = NoJob
Revoke(n) ==
  /\ Reaches(n) /\ lease[n] > 0 /\ Ended(n)
  /\ lease' = [lease EXCEPT ![n] = 0]
  /\ Note("revoke")
  /\ UNCHANGED <<rec, own, dl, ans, late, cool, off, stale, job, stray, mark, client, reqs, world>>

\* One holder of a name: the former lease is gone. What this gateway owned before it adopts like any other.
Join(n) ==
  /\ Reaches(n) /\ ~drain[n] /\ lease[n] = 0 /\ Ended(n)
  /\ lease' = [lease EXCEPT ![n] = Lease] /\ dl' = [dl EXCEPT ![n] = Deadline] /\ ans' = [ans EXCEPT ![n] = 0]
  /\ Note("join")
  /\ UNCHANGED <<rec, own, late, cool, off, stale, job, stray, mark, client, reqs, world>>

-----------------------------------------------------------------------------
(* Time and faults. *)

Losing == IF Drift THEN SUBSET {n \in Node : dl[n] > 0 /\ cool[n] = 0 /\ ~Idle(n)} ELSE {{}}
Prompt(n) == /\ Reaches(n) /\ ~Superseded(n) /\ ~Ended(n) => dl[n] >= Deadline
             /\ Able(n) => ~Ended(n)
Adrift == lease[rec.owner] = 0 \/ ~Held(rec.owner) \/ ~own[rec.owner].bound  \* no binding, or nobody who may use it

\* Fencing is urgent: a gateway that runs does not let its deadline pass.
Tick ==
  /\ rec.st = "TERMINATED" => \E n \in Node : Held(n) \/ hand[n] # NoKeys  \* else nothing is left to happen
  /\ \A n \in Node : paused[n] \/ ~Held(n) \/ dl[n] > 0
  /\ Calm => \A n \in Node : Prompt(n)
  /\ \E slow \in Losing :
     /\ dl' = [n \in Node |-> IF Idle(n) THEN Deadline ELSE IF n \in slow THEN dl[n] ELSE Down(dl[n])]
     /\ ans' = [n \in Node |-> IF Idle(n) THEN 0 ELSE IF n \in slow THEN ans[n] ELSE Down(ans[n])]
     /\ cool' = [n \in Node |-> IF dl'[n] = 0 \/ Idle(n) THEN 0 ELSE IF n \in slow THEN Lease - 1 ELSE Down(cool[n])]
  /\ lease' = [n \in Node |-> IF Idle(n) THEN Lease ELSE Down(lease[n])]
  /\ off' = IF rec.st = "TERMINATED" \/ ~Adrift \/ off = Ttl THEN off ELSE off + 1
  /\ stale' = [n \in Node |-> IF Superseded(n) /\ stale[n] < Lease THEN stale[n] + 1 ELSE stale[n]]
  /\ Note("tick")
  /\ UNCHANGED <<rec, own, late, job, stray, mark, client, reqs, world>>

Fault(kind) == kind \in Faults /\ faults < MaxFaults /\ faults' = faults + 1

\* A crash and, at once, a new process without memory; the lease runs on at the store, and what was sent is on its way.
Crash(n) ==
  /\ Fault("crash")
  /\ Drop(n) /\ Stop(n)
  /\ IF job[n] = NoJob THEN UNCHANGED <<job, stray>> ELSE GiveUp(n)
  /\ hand' = [hand EXCEPT ![n] = NoKeys]
  /\ paused' = [paused EXCEPT ![n] = FALSE] /\ drain' = [drain EXCEPT ![n] = FALSE]
  /\ Note("crash")
  /\ UNCHANGED <<rec, mark, client, reqs, lease, off, cut>>

Cut(n) ==
  /\ ~cut[n] /\ Fault("cut") /\ cut' = [cut EXCEPT ![n] = TRUE]
  /\ Note("cut")
  /\ UNCHANGED <<rec, own, job, stray, mark, client, reqs, clocks, paused, hand, drain>>

Heal(n) ==
  /\ cut[n] /\ cut' = [cut EXCEPT ![n] = FALSE]
  /\ Note("heal")
  /\ UNCHANGED <<rec, own, job, stray, mark, client, reqs, clocks, paused, hand, drain, faults>>

\* The process stops, at worst between the check of a packet and its sending.
Pause(n) ==
  /\ ~paused[n] /\ Fault("pause") /\ paused' = [paused EXCEPT ![n] = TRUE]
  /\ hand' = [hand EXCEPT ![n] = IF Forwards(n) THEN Keys(n) ELSE NoKeys]
  /\ Note("pause")
  /\ UNCHANGED <<rec, own, job, stray, mark, client, reqs, clocks, cut, drain>>

Wake(n) ==
  /\ paused[n] /\ paused' = [paused EXCEPT ![n] = FALSE] /\ hand' = [hand EXCEPT ![n] = NoKeys]
  /\ Note("wake")
  /\ UNCHANGED <<rec, own, job, stray, mark, client, reqs, clocks, cut, drain, faults>>

Drain(n) ==
  /\ ~drain[n] /\ Fault("drain") /\ drain' = [drain EXCEPT ![n] = TRUE]
  /\ Note("drain")
  /\ UNCHANGED <<rec, own, job, stray, mark, client, reqs, clocks, cut, paused, hand>>

\* The end of a drain: stop, and only then give the lease back.
Release(n) ==
  /\ drain[n] /\ Held(n) /\ Reaches(n)
  /\ lease' = [lease EXCEPT ![n] = 0]
  /\ Drop(n) /\ Stop(n)
  /\ Note("release")
  /\ UNCHANGED <<rec, job, stray, mark, client, reqs, off, world>>

Unsure(n) == Fault("unsure") /\ Doubt(n)
TooLate(n) == dl[n] = 0 /\ Doubt(n) /\ UNCHANGED faults

Next ==
  \/ Tick \/ Hear
  \/ \E k \in DOMAIN reqs : Accept(k) \/ \E n \in Node : Read(n, k) \/ Reattach(n, k)
  \/ \E n \in Node : \/ Ask(n) \/ AdoptRead(n) \/ Take(n) \/ Grant(n) \/ Adopt(n) \/ Lose(n) \/ Unsure(n) \/ TooLate(n)
                     \/ Land(n) \/ Forged(n)
                     \/ Flush(n) \/ End(n) \/ Watch(n) \/ Beat(n) \/ Learn(n) \/ Fence(n) \/ Revoke(n) \/ Join(n)
                     \/ Crash(n) \/ Cut(n) \/ Heal(n) \/ Pause(n) \/ Wake(n) \/ Drain(n) \/ Release(n)

Spec == Init /\ [][Next]_vars
\* A stray whose record is gone can do nothing more, whatever it was.
Alive == [n \in Node |-> IF stray[n].base = Present THEN stray[n] ELSE NoJob]
Seen == <<rec, own, clocks, job, Alive, mark, client, reqs, world>>

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
                     /\ Held(n) => own[n].ver - own[n].base[2] \in {0, 1} /\ own[n].term = own[n].base[1]
                     /\ late[n] => Superseded(n)
  /\ off \in 0..Ttl /\ faults <= MaxFaults /\ Len(reqs) <= Attempts

Claims == {"take", "adopt", "land"}  \* what changes the owner
Asked == did'.heard[1] # 0  \* by a client's request
\* P-C1: the client would accept packets as current from one gateway at most.
NO_DUAL_ACTIVE == Cardinality({n \in Node : Active(n)}) <= 1
\* P-C2: who forwards has its lease at the store, and was replaced less than a lease ago if at all.
ONLY_OWNER_FORWARDS == \A n \in Node : Forwards(n) => lease[n] > 0 /\ stale[n] < Lease
\* P-C3
EPOCH == [][/\ Asked => did'.heard[1] > rec.epoch
            /\ IF did'.act \in Claims THEN rec'.epoch = Max(rec.epoch, did'.heard[1])
               ELSE rec'.epoch >= rec.epoch
            /\ rec'.term = rec.term + (IF did'.act \in Claims THEN 1 ELSE 0)]_rec
VERSION == [][rec'.ver = Max(rec.ver, did'.heard[2]) + (IF Asked THEN 2 ELSE 1)]_rec
\* P-C4: what is written replaces the very record that the writer knew.
COMMIT_FENCED == [][did'.base = Present]_rec
\* P-C5: a new owner begins with the binding that the client asked it for, or with none.
BINDING_NOT_INHERITED ==
  [][did'.act \in Claims \/ rec'.owner # rec.owner =>
     IF Asked THEN rec'.bound = rec'.owner /\ rec'.st = "ATTACHED" ELSE rec'.bound = None /\ rec'.st = "RECOVERING"]_rec
\* No answer to a request that nobody has committed.
GRANT_FOLLOWS_COMMIT ==
  [][\A k \in DOMAIN reqs : reqs'[k].answer # reqs[k].answer => reqs'[k].took = 1]_reqs
\* P-C6
NONCE_ONCE == \A k \in DOMAIN reqs : reqs[k].took <= 1
NONCE_PROVED == \A n \in Node : mark[n] = 0 \/ (mark[n] <= Len(reqs) /\ Mine(n, mark[n]))
\* P-S5
ABSORBING == [][rec.st # "TERMINATED"]_rec
\* P-S11: only a new binding stops the transport clock.
CLOCK_KEPT == [][off' < off => did'.act = "reattach" \/ Asked]_off
\* No two gateways act under one term, so (term, version) names a commit.
ONE_HISTORY == \A m, n \in Node : m # n /\ Held(m) /\ Held(n) => own[m].term # own[n].term
ADOPT_SPARES_LIVING == [][did'.act = "adopt" => ~Held(rec.owner) \/ dl[rec.owner] = 0]_rec
\* What the client knows, and what it receives with, never goes back.
Receives == IF client.prev = NoKeys THEN client.epoch ELSE client.prev.epoch
CLIENT_ONWARD == [][/\ client'.epoch # client.epoch => client'.epoch > client.epoch /\ client'.ver > client.ver
                    /\ Receives' >= Receives]_client
\* An epoch that is not the newest stays open only for a gateway that told the client to move.
HANDOVER_DRAINED == [][client'.prev # client.prev /\ client'.prev # NoKeys => drain[client.at]]_client

\* Not promised: these do not hold, and tests say so.
VERSION_NAMES_A_COMMIT ==
  \A m, n \in Node : m # n /\ Held(m) /\ Held(n) => own[m].ver # own[n].ver
NEVER_LATE == \A n \in Node : hand[n] # NoKeys /\ lease[n] = 0 => ~Accepts(hand[n])
ONE_FORWARDS == Cardinality({n \in Node : Forwards(n)}) <= 1
\* Who adopted without a request may know less than the client: it cannot serve it, another gateway can.
OWNER_KNOWS == \A k \in DOMAIN reqs : LET n == reqs[k].to IN Held(n) /\ ~Superseded(n) => Known(n, k)

-----------------------------------------------------------------------------
(* Liveness: a gateway that from some time on is connected, runs and is not drained. All actions of Late and Soon     *)
(* happen finitely often (requests, nonces, versions and faults are bounded), so fairness of the union is fairness of *)
(* each; the fewer conditions, the smaller TLC's product.                                                             *)

Renew == \E n \in Node : Beat(n) \/ Learn(n) \/ Revoke(n) \/ Join(n)
Soon == Hear \/ \E n \in Node : Fence(n) \/ Watch(n) \/ Grant(n) \/ Lose(n) \/ TooLate(n) \/ Ask(n)
Late == \/ \E n \in Node : Take(n) \/ Flush(n) \/ End(n) \/ AdoptRead(n) \/ Adopt(n)
        \/ \E k \in DOMAIN reqs : Accept(k) \/ \E n \in Node : Read(n, k) \/ Reattach(n, k)
Fair == WF_vars(Tick) /\ WF_vars(Renew) /\ WF_vars(Soon) /\ SF_vars(Late)
LiveSpec == Spec /\ Fair

\* P-C7
ATTEMPTS_SUFFICE == rec.st # "TERMINATED" => Len(reqs) < Attempts /\ rec.term < MaxTerm  \* so it ends by Ttl only
RECOVERS == (\E n \in Node : <>[]Able(n)) => <>[](Served \/ rec.st = "TERMINATED")

=============================================================================
