//! What happens on a connection that hyper alone serves, so that it can be told when nothing does.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::reply::Body;

#[derive(Debug)]
struct State {
    /// Requests whose answer has not been taken whole.
    in_work: usize,
    /// Bodies whose next bytes the client is to take.
    with_client: usize,
    last: Instant,
}

/// What happens on one connection.
#[derive(Debug)]
pub(crate) struct Activity(Mutex<State>);

/// What is to be thought of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is at work, or was a moment ago.
    Alive,
    /// Nothing was asked for too long.
    Idle,
    /// The client takes nothing of what it asked for.
    Stalled,
}

impl Activity {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { in_work: 0, with_client: 0, last: Instant::now() })))
    }

    /// A request has come: it is at work until what this gives is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Work {
        self.change(|state| state.in_work += 1);
        Work { activity: Arc::clone(self), waits: false }
    }

    pub(crate) fn verdict(&self, idle: Duration, stall: Duration) -> Verdict {
        let state = self.state();
        let quiet = state.last.elapsed();
        if state.with_client > 0 && quiet >= stall {
            Verdict::Stalled
        } else if state.in_work == 0 && quiet >= idle {
            Verdict::Idle
        } else {
            Verdict::Alive
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        state.last = Instant::now();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nobody panics while counting")
    }
}

/// One request in work.
#[derive(Debug)]
pub(crate) struct Work {
    activity: Arc<Activity>,
    /// The client is to take bytes.
    waits: bool,
}

impl Work {
    fn set_waits(&mut self, waits: bool) {
        let before = std::mem::replace(&mut self.waits, waits);
        self.activity.change(|state| state.with_client = state.with_client + usize::from(waits) - usize::from(before));
    }

    /// An answer whose body counts as work until it is gone.
    pub(crate) const fn track(self, body: Body) -> Tracked {
        Tracked { body, work: self }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.set_waits(false);
        self.activity.change(|state| state.in_work -= 1);
    }
}

/// A body, and whether the client or this server is the one that is waited for.
#[derive(Debug)]
pub(crate) struct Tracked {
    body: Body,
    work: Work,
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.work.waits {
            self.work.set_waits(false);
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.work.set_waits(matches!(frame, Some(Ok(_))));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
