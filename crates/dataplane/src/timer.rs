//! The timer thread: sessions that asked to be looked at, by time; probes, reports, silence and drains follow.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use jumpvpn_packet::header::PathIndex;
use parking_lot::{Condvar, Mutex};

use crate::facts::Fact;
use crate::ingress;
use crate::liveness::Change;
use crate::path::Path;
use crate::rx::{Rx, Sink};
use crate::session::Session;
use crate::shared::Shared;
use crate::sys;
use crate::tx::Tx;

/// A session is looked at most this often: twice as fine as the 5 ms that marks of sent data have.
const RESOLUTION_NS: u64 = 2_500_000;
/// Tables of undecided requests are swept this often.
const SWEEP_NS: u64 = 250_000_000;
/// Traffic counts as flowing this long after the last inner packet.
pub const BUSY_NS: u64 = 1_000_000_000;
/// Never due.
pub const NEVER: u64 = u64::MAX;

#[derive(Debug, Default)]
struct Queue {
    heap: BinaryHeap<Reverse<(u64, u64)>>,
}

/// Wake-ups by time.
#[derive(Debug, Default)]
pub struct TimerQueue {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl TimerQueue {
    /// Asks that the session `handle` is looked at by `due_ns`, unless `armed_ns` says that it will be anyway.
    pub fn arm(&self, armed_ns: &AtomicU64, handle: u64, due_ns: u64) {
        if armed_ns.fetch_min(due_ns, Ordering::AcqRel) <= due_ns {
            return;
        }
        let mut queue = self.queue.lock();
        let first = queue.heap.peek().is_none_or(|Reverse((at, _))| due_ns < *at);
        queue.heap.push(Reverse((due_ns, handle)));
        if first {
            self.changed.notify_one();
        }
    }

    /// Ends a wait.
    pub fn wake(&self) {
        let _queue = self.queue.lock();
        self.changed.notify_all();
    }

    /// Time and handle of the next session that is due; None when `until_ns` comes first.
    fn next(&self, until_ns: u64) -> Option<(u64, u64)> {
        let mut queue = self.queue.lock();
        let now_ns = sys::boottime_ns();
        let due_ns = queue.heap.peek().map_or(until_ns, |Reverse((at, _))| (*at).min(until_ns));
        if due_ns > now_ns {
            self.changed.wait_for(&mut queue, Duration::from_nanos(due_ns - now_ns));
        }
        let now_ns = sys::boottime_ns();
        match queue.heap.peek() {
            Some(Reverse((at, _))) if *at <= now_ns => queue.heap.pop().map(|Reverse(entry)| entry),
            _ => None,
        }
    }
}

/// One turn of the timer thread; `sweep_ns` is when the tables are swept next.
pub fn turn(shared: &Arc<Shared>, sweep_ns: &mut u64) {
    let next = shared.timer.next(*sweep_ns);
    let now_ns = sys::boottime_ns();
    let find = |handle: u64| shared.sessions.read().get(&handle).cloned();
    let session = next.and_then(|(armed_ns, handle)| find(handle).filter(|session| session.disarm(armed_ns)));
    if let Some(session) = session {
        let due_ns = look_at(shared, &session, now_ns);
        if due_ns != NEVER {
            let due_ns = due_ns.max(now_ns + RESOLUTION_NS);
            shared.timer.arm(&session.armed_ns, session.handle, due_ns);
        }
    }
    if now_ns >= *sweep_ns {
        *sweep_ns = now_ns + SWEEP_NS;
        shared.births.sweep(shared, now_ns);
        crate::requests::sweep(shared, now_ns);
    }
}

/// Does what is due for `session`; returns when to look again.
fn look_at(shared: &Arc<Shared>, session: &Arc<Session>, now_ns: u64) -> u64 {
    if shared.is_fenced(now_ns) {
        // Nothing may be sent, so nothing can be found out; who moves the deadline looks at every session.
        return now_ns + BUSY_NS;
    }
    let rekey_ns = session.repeat_rekey(shared, now_ns);
    let mut sink = Sink::default();
    let mut tx = session.tx.lock();
    let (rx_ns, last_data_ns) = {
        let mut rx = session.rx.lock();
        tell_measured(shared, &mut tx, &rx, now_ns);
        rx.due_reports(now_ns, &mut sink);
        let closed = rx.expire(now_ns);
        shared.close_cids(&closed);
        let deadlines = [rx.report_deadline(), rx.drain_deadline()];
        (deadlines.into_iter().flatten().min().unwrap_or(NEVER), rx.last_data_ns.max(tx.last_data_ns))
    };
    for event in sink.events {
        ingress::send_due_report(shared, &mut tx, &event);
    }
    let busy = tx.active.is_none() || now_ns < last_data_ns + BUSY_NS;
    let path_ns = PathIndex::all().map(|path| look_at_path(shared, &mut tx, path, busy, now_ns)).min();
    tx.replay.trim(now_ns);
    if !busy {
        tx.replay.release();
    }
    let replay_ns = if tx.replay.is_empty() { NEVER } else { now_ns + BUSY_NS };
    [rekey_ns, rx_ns, path_ns.unwrap_or(NEVER), replay_ns].into_iter().min().unwrap_or(NEVER)
}

fn tell_measured(shared: &Shared, tx: &mut Tx, rx: &Rx, now_ns: u64) {
    for path in PathIndex::all().filter(|path| tx.paths[path.index()].is_some()).collect::<Vec<_>>() {
        tx.tell_measured(shared, path, &rx.paths[path.index()], rx.current_counts(path), now_ns);
    }
}

fn look_at_path(shared: &Shared, tx: &mut Tx, index: PathIndex, busy: bool, now_ns: u64) -> u64 {
    let session = tx.session;
    let can_send = tx.key.is_some();
    let Some(path) = &mut tx.paths[index.index()] else { return NEVER };
    let Some(limits) = path.live.limits.filter(|_| can_send) else { return NEVER };
    tell_changes(shared, path, session, index, now_ns);
    let interval_ns = if busy { limits.probe_busy_ns } else { limits.probe_idle_ns };
    let last_ns = path.last_probe_ns();
    path.next_probe_ns = path.next_probe_ns.min(last_ns.saturating_add(interval_ns));
    if now_ns >= path.next_probe_ns {
        path.next_probe_ns = now_ns + interval_ns;
        tx.send_probe(shared, index, None, false, now_ns);
    }
    let Some(path) = &tx.paths[index.index()] else { return NEVER };
    path.next_probe_ns.min(path.live.deadline().unwrap_or(NEVER))
}

fn tell_changes(shared: &Shared, path: &mut Path, session: u64, index: PathIndex, now_ns: u64) {
    while let Some(change) = path.live.check(now_ns) {
        path.unvalidate();
        if matches!(change, Change::Dead { .. }) {
            path.shown.forget_ticket();
        }
        let path = index.get();
        shared.tell(match change {
            Change::Silent { silent_ns, limit_ns } => Fact::PathSilent { session, path, silent_ns, limit_ns },
            Change::Dead { silent_ns } => Fact::PathDead { session, path, silent_ns },
        });
    }
}
