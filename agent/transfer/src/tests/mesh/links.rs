//! The links of the mesh: uplinks that their transmissions share evenly, and the seeder's choice of what to send whom.

use alloc::{borrow::Cow, vec::Vec};

use shoal_proto::have::HaveSet;

use super::{Event, Manner, Mesh, SEEDER, blob_id};
use crate::{
    event::{Failure, Input},
    ids::{RequestId, UploadId},
    time::{Span, Time},
};

#[derive(Debug)]
pub(super) struct Sending {
    pub(super) to: usize,
    pub(super) request: RequestId,
    pub(super) piece: u32,
    pub(super) upload: Option<UploadId>,
    pub(super) left: f64,
}

#[derive(Debug, Default)]
pub(super) struct Uplink {
    pub(super) rate: f64,
    pub(super) active: Vec<Sending>,
    pub(super) since: Time,
    pub(super) epoch: u64,
}

/// A request to the seeder.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) asker: usize,
    pub(super) request: RequestId,
    pub(super) want: Vec<u8>,
    pub(super) urgent: Option<u32>,
    pub(super) max: u16,
    pub(super) stalled: bool,
}

#[expect(clippy::cast_possible_truncation, reason = "bytes and nanoseconds of a test are far below 2^53")]
fn whole(value: f64) -> u64 {
    value as u64
}

impl Mesh {
    pub(super) fn asked(&mut self, ask: Ask) {
        if !self.spec.seeder_up {
            let failed = Input::FetchFailed { request: ask.request, failure: Failure::Unreachable };
            self.push(self.later(), Event::Input(ask.asker, failed));
            return;
        }
        self.asks.push(ask);
        self.seed();
    }

    /// Fills the seeder's slots: whoever got least is served first, and gets the urgent piece or one of those least
    /// sent to its region.
    pub(super) fn seed(&mut self) {
        while self.uplinks[&SEEDER].active.len() < self.spec.seeder_slots && !self.asks.is_empty() {
            let got = |ask: &Ask| self.given.get(&ask.asker).copied().unwrap_or(0);
            let (at, _) = self.asks.iter().enumerate().min_by_key(|(at, ask)| (got(ask), *at)).unwrap();
            let Ask { asker, request, want, urgent, max, stalled } = self.asks.remove(at);
            let (region, layout) = (self.spec.region[asker], self.spec.layout);
            let want = HaveSet::from_bytes(&layout, &want).unwrap();
            let sent = |piece: u32| self.sent_to_region.get(&(region, piece)).copied().unwrap_or(0);
            let turn = u32::try_from(self.sequence % u64::from(layout.pieces())).expect("below a u32");
            let spread = |piece: u32| (piece + layout.pieces() - turn) % layout.pieces();
            let mut pieces: Vec<u32> = want.iter().map(|p| p.get()).filter(|p| stalled || sent(*p) == 0).collect();
            pieces.sort_by_key(|piece| (sent(*piece), urgent != Some(*piece), spread(*piece)));
            pieces.truncate(usize::from(max));
            let later = self.later();
            if pieces.is_empty() {
                let deferred = Input::SeederDeferred { request, retry_after: Span::from_millis(200) };
                self.push(later, Event::Input(asker, deferred));
                continue;
            }
            let given = Cow::Owned(pieces.clone());
            self.push(later, Event::Input(asker, Input::SeederGave { request, pieces: given }));
            for piece in pieces {
                *self.sent_to_region.entry((region, piece)).or_default() += 1;
                *self.given.entry(asker).or_default() += 1;
                let left = self.len_of(piece);
                self.send(SEEDER, Sending { to: asker, request, piece, upload: None, left });
            }
        }
    }

    /// Brings an uplink's transmissions up to now.
    pub(super) fn settle(&mut self, at: usize) {
        let now = self.now;
        let uplink = self.uplinks.get_mut(&at).unwrap();
        let share = uplink.rate / uplink.active.len().max(1) as f64;
        let moved = share * now.since(uplink.since).as_nanos() as f64 / 1e9;
        uplink.active.iter_mut().for_each(|sending| sending.left -= moved);
        uplink.since = now;
        uplink.epoch += 1;
    }

    pub(super) fn schedule(&mut self, at: usize) {
        let uplink = &self.uplinks[&at];
        let (epoch, share) = (uplink.epoch, uplink.rate / uplink.active.len().max(1) as f64);
        if let Some(least) = uplink.active.iter().map(|s| s.left.max(0.0)).min_by(f64::total_cmp) {
            let nanos = whole(least / share * 1e9) + 1;
            self.push(self.now + Span::from_nanos(nanos), Event::Uplink(at, epoch));
        }
    }

    pub(super) fn send(&mut self, at: usize, sending: Sending) {
        self.settle(at);
        let active = &mut self.uplinks.get_mut(&at).unwrap().active;
        active.push(sending);
        if at != SEEDER {
            self.transmissions_max = self.transmissions_max.max(active.len());
        }
        self.schedule(at);
    }

    pub(super) fn stop(&mut self, at: usize, which: impl Fn(&Sending) -> bool) {
        self.settle(at);
        self.uplinks.get_mut(&at).unwrap().active.retain(|sending| !which(sending));
        self.schedule(at);
    }

    pub(super) fn sent(&mut self, at: usize, epoch: u64) {
        if self.uplinks[&at].epoch != epoch {
            return;
        }
        self.settle(at);
        let later = self.later();
        let active = &mut self.uplinks.get_mut(&at).unwrap().active;
        let (over, left): (Vec<_>, Vec<_>) = core::mem::take(active).into_iter().partition(|s| s.left < 1.0);
        *active = left;
        for Sending { to, request, piece, upload, .. } in over {
            let corrupt = at != SEEDER && self.spec.manner[at] == Manner::Corrupt;
            let stored = Input::PieceStored { request, blob: blob_id(), piece };
            let bad = Input::PieceCorrupt { request, piece, sole_sender: true };
            self.push(later, Event::Input(to, if corrupt { bad } else { stored }));
            match upload {
                Some(upload) => {
                    self.crossed_pieces += u64::from(self.spec.region[at] != self.spec.region[to]);
                    self.nodes[at].uploads.remove(upload);
                    let bytes = whole(self.len_of(piece));
                    self.feed(at, Input::UploadEnded { upload, bytes });
                }
                None => {
                    self.seeder_pieces += 1;
                    let more = |s: &Sending| s.to == to && s.request == request;
                    if !self.uplinks[&SEEDER].active.iter().any(more) {
                        self.push(later, Event::Input(to, Input::SeederDone { request }));
                    }
                }
            }
        }
        if at == SEEDER {
            self.seed();
        }
        self.schedule(at);
    }
}
