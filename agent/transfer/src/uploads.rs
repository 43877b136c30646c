//! The uploader's schedule: few pieces in transmission at once, the rest queued. A piece that is soon whole can be
//! passed on; many at once would all be whole late, and every generation of the swarm would wait for all. Of what waits,
//! the piece that this node has served least goes first: it is the one that others cannot pass on yet.

use alloc::vec::Vec;

use shoal_proto::{
    layout::PieceIndex,
    message::{Priority, RefuseReason},
};

use crate::{
    Node,
    event::Action,
    fetch::smooth,
    ids::{BlobId, PeerId, UploadId},
    time::{Span, Time},
};

/// Parts of a slot in which [`Node::spread_uploads`] counts.
const SPREAD: u32 = 8;

/// A piece that a peer asked for.
#[derive(Debug)]
pub(crate) struct Upload {
    peer: PeerId,
    blob: BlobId,
    piece: PieceIndex,
    len: u64,
    priority: Priority,
    /// Order of arrival.
    sequence: u64,
    asked: Time,
    /// In transmission since then.
    started: Option<Time>,
    /// Takes no slot.
    small: bool,
}

impl Node {
    pub(crate) fn upload_requested(
        &mut self,
        id: UploadId,
        peer: PeerId,
        blob: BlobId,
        piece: u32,
        priority: Priority,
    ) {
        let held = self.blobs.get(blob).and_then(|b| {
            let piece = b.layout.piece(piece).filter(|p| b.have.contains(*p))?;
            Some((piece, b.layout.len_of(piece)))
        });
        let Some(asker) = self.peers.get_mut(peer) else { return };
        let most = self.config.upload_queue_per_peer_max;
        let room = match held {
            Some((_, len)) if len <= self.config.upload_small_bytes => u32::from(asker.uploading) < most,
            _ => self.waiting.len() < self.queue_limit && u32::from(asker.queued) < most,
        };
        let (Some((piece, len)), true) = (held, room) else {
            let reason = if held.is_some() { RefuseReason::Busy } else { RefuseReason::NotHeld };
            self.stats.refused += 1;
            self.actions.push_back(Action::Refuse { upload: id, reason });
            return;
        };
        if let Some(old) = self.uploads.occupant(id) {
            self.upload_ended(old, 0);
        }
        let Some(asker) = self.peers.get_mut(peer) else { return };
        asker.queued += 1;
        self.sequence += 1;
        let (sequence, asked, small) = (self.sequence, self.now, len <= self.config.upload_small_bytes);
        self.uploads.place(id, Upload { peer, blob, piece, len, priority, sequence, asked, started: None, small });
        if small {
            return self.start_upload(id);
        }
        self.waiting.push(id);
        self.upload_due = true;
    }

    pub(crate) fn upload_ended(&mut self, id: UploadId, bytes: u64) {
        let Some(upload) = self.uploads.remove(id) else { return };
        self.upload_due = true;
        self.stats.served_bytes += bytes;
        let started = upload.started.is_some();
        if started && !upload.small {
            self.pace(upload.started.unwrap_or(self.now), bytes);
            self.sending.retain(|sending| *sending != id);
        } else if !started {
            self.waiting.retain(|waiting| *waiting != id);
        }
        if let Some(peer) = self.peers.get_mut(upload.peer) {
            if started {
                peer.uploading -= 1;
            } else {
                peer.queued -= 1;
            }
        }
    }

    pub(crate) fn drop_uploads_of(&mut self, peer: PeerId) {
        let of: Vec<UploadId> = self.uploads.iter().filter(|(_, u)| u.peer == peer).map(|(id, _)| id).collect();
        for id in of {
            self.upload_ended(id, 0);
        }
    }

    /// Learns how fast uploads go, and so how many may wait, and how many are to be in transmission at once.
    fn pace(&mut self, started: Time, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let busy = self.now.since(started.max(self.uploaded_at));
        let alone = self.sending.len() == 1 && started >= self.uploaded_at;
        self.uploaded_at = self.now;
        smooth(&mut self.upload_pace, busy);
        self.spread_uploads(busy, bytes, alone);
        note_least(&mut self.upload_best, self.now.since(started));
        let fit = self.config.upload_queue_ahead.as_nanos() / self.upload_pace.as_nanos().max(1);
        let (base, max) = (self.config.upload_queue_base as usize, self.config.upload_queue_max as usize);
        self.queue_limit = usize::try_from(fit).unwrap_or(max).clamp(base.min(max), max);
    }

    /// More uploads at once while the uplink has been faster than it is: their receivers have others that send to them.
    /// Where one alone fills the uplink, one at a time is whole soonest.
    fn spread_uploads(&mut self, busy: Span, bytes: u64, alone: bool) {
        let cost = u128::from(busy.as_nanos()) * (1 << 20) / u128::from(bytes);
        let cost = Span::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX));
        smooth(&mut self.upload_cost, cost);
        let usual = self.upload_cost;
        note_least(&mut self.upload_cost_best, if alone { usual.min(cost) } else { usual });
        let (usual, best) = (usual.as_nanos(), self.upload_cost_best.as_nanos());
        let most = SPREAD * self.config.upload_spread_max;
        self.upload_spread = if usual > best + best / 8 {
            (self.upload_spread + 2).min(most)
        } else {
            self.upload_spread.saturating_sub(1)
        };
    }

    fn start_upload(&mut self, id: UploadId) {
        let now = self.now;
        let Some(upload) = self.uploads.get_mut(id) else { return };
        upload.started = Some(now);
        if let Some(blob) = self.blobs.get_mut(upload.blob) {
            let served = &mut blob.served[upload.piece.as_usize()];
            *served = served.saturating_add(1);
        }
        if let Some(peer) = self.peers.get_mut(upload.peer) {
            peer.queued -= 1;
            peer.uploading += 1;
        }
        self.stats.served += 1;
        self.actions.push_back(Action::Serve { upload: id });
    }

    /// Starts uploads while slots are free.
    pub(crate) fn upload(&mut self) {
        let most = (self.config.upload_sending_factor * self.slots()) as usize;
        while !self.waiting.is_empty() && self.sending.len() < most && self.has_slot() {
            let key = |id: &UploadId| {
                let upload = self.uploads.get(*id)?;
                let peer = self.peers.get(upload.peer)?;
                // Who has waited long goes first whatever the piece, or pieces served before would wait for ever.
                let long = self.now.since(upload.asked) >= self.config.upload_wait;
                let served = if long { 0 } else { self.blobs.get(upload.blob)?.served[upload.piece.as_usize()] };
                Some((upload.priority, served, peer.uploading, upload.sequence))
            };
            let best = self.waiting.iter().enumerate().min_by_key(|(_, id)| key(id)).map(|(at, _)| at);
            let Some(at) = best else { return };
            let id = self.waiting.swap_remove(at);
            self.start_upload(id);
            self.sending.push(id);
        }
        if !self.waiting.is_empty() {
            let oldest = self.sending.iter().filter_map(|id| self.uploads.get(*id)?.started).min();
            if let Some(oldest) = oldest {
                let due = oldest + self.slot_span();
                if due > self.now {
                    self.wake_at(due);
                }
            }
        }
    }

    /// Pieces that may be in transmission at once.
    fn slots(&self) -> u32 {
        let pace = self.upload_pace.as_nanos();
        let ahead = self.config.pipeline_ahead.as_nanos().checked_div(pace).unwrap_or(0);
        let (least, most) = (self.config.upload_slots, self.config.upload_slots_max);
        let spread = least + self.upload_spread / SPREAD;
        u32::try_from(ahead).unwrap_or(most).clamp(spread.min(most), most)
    }

    /// How long an upload holds its slot.
    fn slot_span(&self) -> Span {
        let slow = self.upload_best.times(u64::from(self.config.upload_slow_factor));
        let most = self.config.upload_slot_max;
        if slow == Span::ZERO { most } else { slow.max(self.config.upload_slot_min).min(most) }
    }

    /// Whether another upload may begin: a slot is free, or what is in transmission is little.
    fn has_slot(&self) -> bool {
        let span = self.slot_span();
        let (mut taken, mut bytes) = (0, 0);
        for upload in self.sending.iter().filter_map(|id| self.uploads.get(*id)) {
            // What lasts long is held up by its receiver, and holds no slot.
            if upload.started.is_some_and(|started| self.now.since(started) < span) {
                taken += 1;
                bytes += upload.len;
            }
        }
        taken < self.slots() || (taken < self.config.upload_slots_max && bytes < self.config.upload_bytes)
    }
}

/// Keeps the least of late: it is forgotten slowly, so that a link that has become slower is believed in the end.
fn note_least(least: &mut Span, sample: Span) {
    let (old, new) = (least.as_nanos(), sample.as_nanos());
    *least = Span::from_nanos(if old == 0 { new } else { new.min(old + old / 512 + 1) });
}
