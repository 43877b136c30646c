//! What the seeder remembers of the pieces it sent, by the seeder's own rules: of what a node wants it gives what went
//! least often to that region, the piece that a client reads first among equals, the rest in a rotation that differs from
//! request to request; and a piece that went to a region goes there again only if its receiver left or lost it, if the
//! node that asks is stalled, or after a while.

use crate::num::{at, small};

const MS: u64 = 1_000_000;
/// A piece that was sent to a region is sent there again after this.
const AGAIN_AFTER: u64 = 30_000 * MS;
/// Whoever asks for a piece so long after it was sent to it has lost it.
const LOST_AFTER: u64 = 3_000 * MS;
/// Slowest link that is waited for, in bytes a millisecond.
const SLOW_BYTES_PER_MS: u64 = 256;
/// Shortest time after which a node that got nothing asks again, and the spread of it.
const RETRY_MS: (u64, u64) = (500, 500);

#[derive(Debug, Clone, Copy, Default)]
enum Sent {
    #[default]
    Never,
    Running {
        since: u64,
        send: u64,
    },
    Done {
        at: u64,
        to: u32,
    },
    Broken,
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    sends: u16,
    sent: Sent,
}

/// One node's wish.
#[derive(Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) node: u32,
    pub(crate) region: u32,
    pub(crate) blob: u32,
    /// One bit a piece, lowest first.
    pub(crate) want: &'a [u8],
    pub(crate) urgent: Option<u32>,
    pub(crate) max: usize,
    pub(crate) stalled: bool,
}

/// A send: what of, to whom, and its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sending {
    pub(crate) blob: u32,
    pub(crate) region: u32,
    pub(crate) node: u32,
    pub(crate) send: u64,
}

/// What it gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// These pieces, under this number.
    Give(Vec<u32>, u64),
    /// Nothing; ask again after so many nanoseconds.
    Wait(u64),
}

/// Bytes of a piece and pieces of a blob.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) pieces: u32,
    pub(crate) piece_len: u64,
}

/// Who was sent what.
#[derive(Debug)]
pub(crate) struct Ledger {
    cuts: Vec<Cut>,
    regions: usize,
    /// By `blob * regions + region`.
    cells: Vec<Vec<Cell>>,
    /// Bytes that each node drew of each blob, by `node * blobs + blob`; made when it first asks.
    drawn: Vec<u64>,
    ticks: u64,
}

impl Ledger {
    pub(crate) fn new(cuts: Vec<Cut>, regions: usize, nodes: usize) -> Self {
        let cells = cuts.iter().flat_map(|cut| (0..regions).map(|_| vec![Cell::default(); at(cut.pieces)])).collect();
        let drawn = vec![0; nodes * cuts.len()];
        Self { cuts, regions, cells, drawn, ticks: 0 }
    }

    /// Decides what `ask` gets, and takes it as being sent.
    pub(crate) fn choose(&mut self, ask: &Ask<'_>, now: u64) -> Choice {
        self.ticks += 1;
        let send = self.ticks;
        let cut = self.cuts[at(ask.blob)];
        let drawn = &mut self.drawn[at(ask.node) * self.cuts.len() + at(ask.blob)];
        let limit = 2 * u64::from(cut.pieces) * cut.piece_len;
        let cells = &mut self.cells[at(ask.blob) * self.regions + at(ask.region)];
        let room = usize::try_from(limit.saturating_sub(*drawn) / cut.piece_len).unwrap_or(usize::MAX);
        let given = best(ask, cells, cut, send, now, ask.max.min(room));
        if given.is_empty() {
            return Choice::Wait((RETRY_MS.0 + crate::rng::mix(u64::from(ask.node)) % RETRY_MS.1) * MS);
        }
        for &piece in &given {
            let cell = &mut cells[at(piece)];
            cell.sends = cell.sends.saturating_add(1);
            cell.sent = Sent::Running { since: now, send };
        }
        *drawn += given.len() as u64 * cut.piece_len;
        Choice::Give(given, send)
    }

    /// A piece of a send is in the node's hands, or was not sent after all.
    pub(crate) fn ended(&mut self, sent: Sending, piece: u32, whole: bool, now: u64) {
        let Sending { blob, region, send, node } = sent;
        let cell = &mut self.cells[at(blob) * self.regions + at(region)][at(piece)];
        if matches!(cell.sent, Sent::Running { send: newest, .. } if newest == send) {
            if whole {
                cell.sent = Sent::Done { at: now, to: node };
            } else {
                cell.sent = Sent::Broken;
                cell.sends = cell.sends.saturating_sub(1);
            }
        }
        if !whole {
            let drawn = &mut self.drawn[at(node) * self.cuts.len() + at(blob)];
            *drawn = drawn.saturating_sub(self.cuts[at(blob)].piece_len);
        }
    }
}

/// The best `max` pieces that may be sent.
fn best(ask: &Ask<'_>, cells: &[Cell], cut: Cut, send: u64, now: u64, max: usize) -> Vec<u32> {
    let turn = small(usize::try_from(send.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).expect("32 bits are left"));
    let start = turn % cut.pieces.max(1);
    let mut kept: Vec<((u16, bool, u32), u32)> = Vec::with_capacity(max.min(16) + 1);
    for (index, cell) in (0..cut.pieces).zip(cells) {
        let wanted = ask.want.get(at(index / 8)).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
        if !wanted || !may_send(cell, ask, cut.piece_len, now) {
            continue;
        }
        let key = (cell.sends, ask.urgent != Some(index), (index + cut.pieces - start) % cut.pieces);
        if kept.len() < max || kept.last().is_some_and(|(last, _)| key < *last) {
            let place = kept.partition_point(|(other, _)| *other < key);
            kept.insert(place, (key, index));
            kept.truncate(max);
        }
    }
    kept.into_iter().map(|(_, piece)| piece).collect()
}

fn may_send(cell: &Cell, ask: &Ask<'_>, piece_len: u64, now: u64) -> bool {
    match cell.sent {
        Sent::Never | Sent::Broken => true,
        _ if ask.stalled => true,
        Sent::Done { at, to } => now >= at + if to == ask.node { LOST_AFTER } else { AGAIN_AFTER },
        Sent::Running { since, .. } => now >= since + AGAIN_AFTER + piece_len / SLOW_BYTES_PER_MS * MS,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn ledger() -> Ledger {
        Ledger::new(vec![Cut { pieces: 30, piece_len: 1 << 20 }], 2, 20)
    }

    fn ask(node: u32, region: u32, stalled: bool) -> Ask<'static> {
        Ask { node, region, blob: 0, want: &[0xff; 4], urgent: None, max: 4, stalled }
    }

    #[test]
    fn nodes_that_ask_at_once_get_disjoint_pieces_until_all_are_out() {
        let mut ledger = ledger();
        let mut out = BTreeSet::new();
        for node in 0..8 {
            let Choice::Give(pieces, _) = ledger.choose(&ask(node, 0, false), 0) else { panic!("node {node}") };
            assert!(pieces.iter().all(|piece| out.insert(*piece)));
        }
        assert_eq!(out.len(), 30);
        assert!(matches!(ledger.choose(&ask(9, 0, false), 0), Choice::Wait(wait) if wait >= 500 * MS));
        assert!(matches!(ledger.choose(&ask(9, 1, false), 0), Choice::Give(..)), "another region has its own turn");
        assert!(matches!(ledger.choose(&ask(9, 0, true), 0), Choice::Give(..)), "whoever is stalled is served");
    }

    #[test]
    fn a_piece_whose_receiver_left_goes_to_the_next() {
        let mut ledger = ledger();
        let Choice::Give(pieces, send) = ledger.choose(&ask(0, 0, false), 0) else { panic!("nothing given") };
        (1..7).for_each(|node| assert!(matches!(ledger.choose(&ask(node, 0, false), 0), Choice::Give(..))));
        let sent = Sending { blob: 0, region: 0, node: 0, send };
        ledger.ended(sent, pieces[0], false, 1);
        ledger.ended(sent, pieces[1], true, 1);
        let Choice::Give(last, _) = ledger.choose(&ask(8, 0, false), 2) else { panic!("two pieces were never sent") };
        assert_eq!(last.len(), 3);
        assert!(last.contains(&pieces[0]) && !last.contains(&pieces[1]));
    }

    #[test]
    fn nobody_draws_more_than_twice_the_blob() {
        let mut ledger = ledger();
        let drawn = (0..100).filter(|_| matches!(ledger.choose(&ask(3, 0, true), 0), Choice::Give(..))).count();
        assert_eq!(drawn, 15);
    }
}
