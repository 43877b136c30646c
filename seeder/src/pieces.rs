//! Which pieces a node gets from the seeder: how the seeder guards itself.
//!
//! A node says what it wants and cannot find among its peers. For each region the ledger remembers when each piece of a
//! blob was sent and to whom. Of what is wanted, it gives what was least often sent to that region; ties go first to the
//! piece that a client reads next, then by a rotation that differs from request to request, so that nodes which ask at the
//! same moment get different pieces and have something to trade.
//!
//! A piece that was sent to a region is not sent there again, because it can be had from whoever got it, unless
//! - the one who got it left before it was complete, or asks for it again after [`LOST_AFTER_MS`] (it must have lost it),
//! - the node that asks says that it has made no progress for a while, or
//! - so much time has passed that it must be assumed lost: [`AGAIN_AFTER_MS`], and the time that a slow link needs.
//!
//! Whatever a node claims, it draws at most twice the blob's bytes before its budget halves with time. Everything here is
//! bounded; what is forgotten costs a second send at worst. Pure: the clock is an argument.

use std::collections::BTreeMap;

use shoal_proto::{
    Digest,
    have::HaveSet,
    layout::{Layout, PieceIndex},
    signed::{Label, NodeId},
};

/// A piece that was sent to a region is sent there again after this time. Long against the seconds in which a piece
/// spreads through a region, short against the patience of a node that nobody serves.
pub const AGAIN_AFTER_MS: u64 = 30_000;
/// A node that asks for a piece so long after its socket has taken it does not have it. Until then the piece may still be
/// on its way through the node, while another of its requests was already made.
pub const LOST_AFTER_MS: u64 = 3_000;
/// Slowest link that is waited for, in bytes a millisecond: a piece in transmission is given up for lost when it has
/// taken longer than at this rate.
const SLOW_BYTES_PER_MS: u64 = 256;
/// A node's drawn bytes count half after so long.
const BUDGET_HALF_LIFE_MS: u64 = 600_000;
/// Nodes whose budgets are remembered for each blob.
const BUDGETS_MAX: usize = 1024;
/// Regions that are told apart for each blob; further ones count as one.
const REGIONS_MAX: usize = 32;
/// Pieces that are remembered, of all blobs and regions together: 8 MiB.
const CELLS_MAX: usize = 1 << 18;
/// Shortest time after which a node that got nothing should ask again.
const RETRY_MIN_MS: u32 = 500;
/// Spread of that time, so that nodes which asked together do not come back together.
const RETRY_SPREAD_MS: u32 = 500;

/// One node's wish.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Who asks.
    pub node: NodeId,
    /// Where it stands.
    pub region: Option<&'a Label>,
    /// The blob.
    pub digest: Digest,
    /// Its cut.
    pub layout: Layout,
    /// What it would take.
    pub want: &'a HaveSet,
    /// The piece that a client of the node reads next.
    pub urgent: Option<u32>,
    /// At most so many.
    pub max: usize,
    /// It has made no progress for a while.
    pub stalled: bool,
}

/// What the node gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// These pieces, and the name of this send.
    Give(Vec<PieceIndex>, SendId),
    /// Nothing now: peers hold what it wants, or are about to.
    Wait {
        /// Ask again after so long.
        retry_after_ms: u32,
    },
    /// Nothing: it has drawn too much of this blob.
    OverBudget,
}

/// Names one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendId(u64);

#[derive(Debug, Clone, Copy, Default)]
enum Sent {
    #[default]
    Never,
    /// On its way since then.
    Running { since_ms: u64, send: u64 },
    /// Arrived then, at a node of that tag.
    Done { at_ms: u64, to: u32 },
    /// The node left before it was complete.
    Broken,
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    sends: u16,
    sent: Sent,
}

#[derive(Debug, Clone, Copy)]
struct Budget {
    drawn: u64,
    at_ms: u64,
}

impl Budget {
    fn at(self, now_ms: u64) -> Self {
        let halvings = now_ms.saturating_sub(self.at_ms) / BUDGET_HALF_LIFE_MS;
        let drawn = self.drawn.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0);
        Self { drawn, at_ms: self.at_ms + halvings * BUDGET_HALF_LIFE_MS }
    }
}

#[derive(Debug)]
struct BlobLedger {
    regions: BTreeMap<Option<Label>, Box<[Cell]>>,
    budgets: BTreeMap<NodeId, Budget>,
    used: u64,
}

#[derive(Debug)]
struct Running {
    digest: Digest,
    region: Option<Label>,
    node: NodeId,
    layout: Layout,
    left: Vec<PieceIndex>,
}

/// Who was sent what. See the module's text.
#[derive(Debug, Default)]
pub struct Ledger {
    blobs: BTreeMap<Digest, BlobLedger>,
    /// Bounded by the transfers that the server lets run at once.
    running: BTreeMap<u64, Running>,
    cells: usize,
    /// Counts requests: orders blobs by use, names sends, turns the rotation.
    tick: u64,
}

/// A node's name in a cell: four bytes of its key are enough to know it again.
fn tag(node: &NodeId) -> u32 {
    u32::from_le_bytes([node.0[0], node.0[1], node.0[2], node.0[3]])
}

impl Ledger {
    /// Decides what `ask` gets, and takes it as being sent.
    pub fn choose(&mut self, ask: &Ask<'_>, now_ms: u64) -> Choice {
        self.tick += 1;
        let tick = self.tick;
        let region = self.open(ask);
        let blob = self.blobs.get_mut(&ask.digest).expect("just opened");
        blob.used = tick;
        let Budget { drawn, at_ms } =
            blob.budgets.get(&ask.node).map_or(Budget { drawn: 0, at_ms: now_ms }, |b| b.at(now_ms));
        let limit = (2 * ask.layout.size()).max(2 * ask.layout.piece_len());
        let cells = blob.regions.get_mut(&region).expect("just opened");
        let mut fit = wanted(ask, cells, now_ms, tick);
        let wanted_any = !fit.is_empty();
        let mut cost = 0;
        fit.retain(|piece| {
            let fits = drawn + cost + ask.layout.len_of(*piece) <= limit;
            cost += if fits { ask.layout.len_of(*piece) } else { 0 };
            fits
        });
        if fit.is_empty() {
            let retry_after_ms = RETRY_MIN_MS + tag(&ask.node) % RETRY_SPREAD_MS;
            return if wanted_any { Choice::OverBudget } else { Choice::Wait { retry_after_ms } };
        }
        for piece in &fit {
            let cell = &mut cells[piece.as_usize()];
            cell.sends = cell.sends.saturating_add(1);
            cell.sent = Sent::Running { since_ms: now_ms, send: tick };
        }
        if blob.budgets.len() >= BUDGETS_MAX && !blob.budgets.contains_key(&ask.node) {
            let least = blob.budgets.iter().min_by_key(|(_, budget)| budget.at(now_ms).drawn).map(|(node, _)| *node);
            least.and_then(|node| blob.budgets.remove(&node));
        }
        blob.budgets.insert(ask.node, Budget { drawn: drawn + cost, at_ms });
        let running = Running { digest: ask.digest, region, node: ask.node, layout: ask.layout, left: fit.clone() };
        self.running.insert(tick, running);
        Choice::Give(fit, SendId(tick))
    }

    /// Makes sure that there is a table for the blob and region, and returns the region under which it is kept.
    fn open(&mut self, ask: &Ask<'_>) -> Option<Label> {
        let pieces = ask.layout.pieces() as usize;
        let blob = self.blobs.get(&ask.digest);
        let known = |region: &Option<Label>| blob.is_some_and(|blob| blob.regions.contains_key(region));
        let mut region = ask.region.cloned();
        if known(&region) {
            return region;
        }
        if blob.is_some_and(|blob| blob.regions.len() >= REGIONS_MAX) {
            region = None;
            if known(&region) {
                return region;
            }
        }
        while self.cells + pieces > CELLS_MAX {
            let oldest =
                self.blobs.iter().filter(|(digest, _)| **digest != ask.digest).min_by_key(|(_, blob)| blob.used);
            let Some(digest) = oldest.map(|(digest, _)| *digest) else { break };
            let gone = self.blobs.remove(&digest).expect("it was just found");
            self.cells -= gone.regions.values().map(|cells| cells.len()).sum::<usize>();
        }
        let blob = self.blobs.entry(ask.digest).or_insert_with(|| BlobLedger {
            regions: BTreeMap::new(),
            budgets: BTreeMap::new(),
            used: 0,
        });
        blob.regions.insert(region.clone(), vec![Cell::default(); pieces].into());
        self.cells += pieces;
        region
    }

    /// The socket of the node has taken a whole piece of a send.
    pub fn sent(&mut self, send: SendId, piece: PieceIndex, now_ms: u64) {
        let Some(running) = self.running.get_mut(&send.0) else { return };
        running.left.retain(|left| *left != piece);
        let to = tag(&running.node);
        let (digest, region) = (running.digest, running.region.clone());
        self.settle(&digest, &region, send, piece, Sent::Done { at_ms: now_ms, to });
    }

    /// A send is over. Pieces that were not sent can go to others, and do not count against the node.
    pub fn ended(&mut self, send: SendId) {
        let Some(running) = self.running.remove(&send.0) else { return };
        let unsent = running.left.iter().map(|piece| running.layout.len_of(*piece)).sum();
        if let Some(budget) = self.blobs.get_mut(&running.digest).and_then(|blob| blob.budgets.get_mut(&running.node)) {
            budget.drawn = budget.drawn.saturating_sub(unsent);
        }
        for piece in running.left {
            self.settle(&running.digest, &running.region, send, piece, Sent::Broken);
        }
    }

    /// Only the newest send of a piece says what became of it.
    fn settle(&mut self, digest: &Digest, region: &Option<Label>, send: SendId, piece: PieceIndex, sent: Sent) {
        let cells = self.blobs.get_mut(digest).and_then(|blob| blob.regions.get_mut(region));
        let Some(cell) = cells.and_then(|cells| cells.get_mut(piece.as_usize())) else { return };
        if matches!(cell.sent, Sent::Running { send: newest, .. } if newest == send.0) {
            cell.sent = sent;
            if matches!(sent, Sent::Broken) {
                cell.sends = cell.sends.saturating_sub(1);
            }
        }
    }
}

/// The pieces that `ask` may get, best first, at most as many as it asked for.
fn wanted(ask: &Ask<'_>, cells: &[Cell], now_ms: u64, tick: u64) -> Vec<PieceIndex> {
    let pieces = ask.layout.pieces();
    // A step of about 0.618 of the ring: successive requests start far from each other.
    let turn = u32::try_from(tick.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32).expect("32 bits are left");
    let start = if pieces == 0 { 0 } else { turn % pieces };
    // Clients read from the start: the first piece must be on its way before the first of them says so.
    let urgent = ask.urgent.unwrap_or(0);
    let mut fit: Vec<_> = ask
        .want
        .iter()
        .filter(|piece| may_send(&cells[piece.as_usize()], ask, *piece, now_ms))
        .map(|piece| {
            (cells[piece.as_usize()].sends, urgent != piece.get(), (piece.get() + pieces - start) % pieces, piece)
        })
        .collect();
    fit.sort_unstable();
    fit.into_iter().take(ask.max).map(|(.., piece)| piece).collect()
}

fn may_send(cell: &Cell, ask: &Ask<'_>, piece: PieceIndex, now_ms: u64) -> bool {
    match cell.sent {
        Sent::Never | Sent::Broken => true,
        _ if ask.stalled => true,
        Sent::Done { at_ms, to } => now_ms >= at_ms + if to == tag(&ask.node) { LOST_AFTER_MS } else { AGAIN_AFTER_MS },
        Sent::Running { since_ms, .. } => {
            now_ms >= since_ms + AGAIN_AFTER_MS + ask.layout.len_of(piece) / SLOW_BYTES_PER_MS
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PIECE: u64 = shoal_proto::layout::PIECE_LEN_MIN;

    fn node(n: u8) -> NodeId {
        NodeId([n; 32])
    }

    struct Case {
        ledger: Ledger,
        layout: Layout,
        all: HaveSet,
    }

    impl Case {
        fn new(pieces: u64) -> Self {
            let layout = Layout::new(pieces * PIECE).unwrap();
            Self { ledger: Ledger::default(), layout, all: HaveSet::full(&layout) }
        }

        fn ask(&mut self, n: u8, region: Option<&Label>, max: usize, stalled: bool, now_ms: u64) -> Choice {
            let want = self.all.clone();
            let digest = Digest::of(b"blob");
            let ask =
                Ask { node: node(n), region, digest, layout: self.layout, want: &want, urgent: None, max, stalled };
            self.ledger.choose(&ask, now_ms)
        }

        fn given(&mut self, n: u8, max: usize, stalled: bool, now_ms: u64) -> (Vec<PieceIndex>, SendId) {
            match self.ask(n, None, max, stalled, now_ms) {
                Choice::Give(pieces, send) => (pieces, send),
                other @ (Choice::Wait { .. } | Choice::OverBudget) => panic!("{other:?}"),
            }
        }

        fn finish(&mut self, pieces: &[PieceIndex], send: SendId, now_ms: u64) {
            for piece in pieces {
                self.ledger.sent(send, *piece, now_ms);
            }
            self.ledger.ended(send);
        }
    }

    #[test]
    fn eight_nodes_that_ask_at_once_get_disjoint_pieces_until_all_are_out() {
        let mut case = Case::new(30);
        let mut out = BTreeSet::new();
        for n in 0..8 {
            let (pieces, send) = case.given(n, 4, false, 0);
            assert_eq!(pieces.len(), if n < 7 { 4 } else { 2 });
            assert!(pieces.iter().all(|piece| out.insert(*piece)), "node {n} got a piece twice");
            case.finish(&pieces, send, 0);
        }
        assert_eq!(out.len(), 30);
        assert!(matches!(case.ask(9, None, 4, false, 1000), Choice::Wait { retry_after_ms: 500.. }));
    }

    #[test]
    fn a_piece_whose_receiver_left_goes_to_the_next() {
        let mut case = Case::new(4);
        let (pieces, send) = case.given(1, 4, false, 0);
        case.ledger.sent(send, pieces[0], 1);
        case.ledger.ended(send);
        let (again, _) = case.given(2, 4, false, 2);
        assert_eq!(again.iter().collect::<BTreeSet<_>>(), pieces[1..].iter().collect());
    }

    #[test]
    fn a_stalled_node_is_served_whatever_was_sent() {
        let mut case = Case::new(4);
        let (pieces, send) = case.given(1, 4, false, 0);
        case.finish(&pieces, send, 0);
        assert!(matches!(case.ask(2, None, 4, false, 10), Choice::Wait { .. }));
        assert_eq!(case.given(2, 2, true, 10).0.len(), 2);
    }

    #[test]
    fn pieces_go_out_again_when_they_must_be_lost() {
        let mut case = Case::new(2);
        let (pieces, send) = case.given(1, 2, false, 0);
        case.ledger.sent(send, pieces[0], 0);
        let slow = AGAIN_AFTER_MS + PIECE / SLOW_BYTES_PER_MS;
        assert_eq!(case.given(2, 2, false, AGAIN_AFTER_MS).0, [pieces[0]]);
        assert!(matches!(case.ask(3, None, 2, false, slow - 1), Choice::Wait { .. }));
        assert_eq!(case.given(3, 2, false, slow).0, [pieces[1]], "also one that is still on its way");
    }

    #[test]
    fn a_node_that_lost_a_piece_gets_it_again() {
        let mut case = Case::new(2);
        let (pieces, send) = case.given(1, 2, false, 0);
        case.finish(&pieces, send, 0);
        assert!(
            matches!(case.ask(1, None, 2, false, LOST_AFTER_MS - 1), Choice::Wait { .. }),
            "it may be about to have it"
        );
        assert_eq!(case.given(1, 2, false, LOST_AFTER_MS).0.len(), 2);
    }

    #[test]
    fn regions_are_served_apart() {
        let mut case = Case::new(2);
        let (a, b): (Label, Label) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert!(matches!(case.ask(1, Some(&a), 2, false, 0), Choice::Give(pieces, _) if pieces.len() == 2));
        assert!(matches!(case.ask(2, Some(&b), 2, false, 0), Choice::Give(pieces, _) if pieces.len() == 2));
        assert!(matches!(case.ask(3, Some(&b), 2, false, 0), Choice::Wait { .. }));
    }

    #[test]
    fn a_lying_node_draws_twice_the_blob_and_no_more_until_time_has_passed() {
        let mut case = Case::new(8);
        let mut drawn = 0;
        while let Choice::Give(pieces, send) = case.ask(1, None, 3, true, 0) {
            drawn += pieces.len();
            case.finish(&pieces, send, 0);
        }
        assert_eq!(drawn, 16);
        assert_eq!(case.ask(1, None, 3, true, 0), Choice::OverBudget);
        assert!(matches!(case.ask(2, None, 3, true, 0), Choice::Give(..)), "others are served");
        assert!(matches!(case.ask(1, None, 3, true, BUDGET_HALF_LIFE_MS), Choice::Give(..)));
    }

    #[test]
    fn the_piece_that_is_read_next_goes_first_once() {
        let mut case = Case::new(8);
        let want = case.all.clone();
        for (n, first) in [(1, true), (2, false)] {
            let digest = Digest::of(b"blob");
            let ask = Ask {
                node: node(n),
                region: None,
                digest,
                layout: case.layout,
                want: &want,
                urgent: Some(5),
                max: 2,
                stalled: false,
            };
            let Choice::Give(pieces, _) = case.ledger.choose(&ask, 0) else { panic!("there are enough") };
            assert_eq!(pieces[0].get() == 5, first);
        }
    }

    #[test]
    fn what_was_not_sent_does_not_count_against_the_node() {
        let mut case = Case::new(8);
        for _ in 0..20 {
            let (_, send) = case.given(1, 8, true, 0);
            case.ledger.ended(send);
        }
    }

    #[test]
    fn the_ledger_stays_bounded() {
        let mut ledger = Ledger::default();
        let layout = Layout::new(4096 * PIECE).unwrap();
        let want = HaveSet::full(&layout);
        for n in 0..200u64 {
            let digest = Digest::of(&n.to_le_bytes());
            let label: Label = format!("r{}", n % 50).parse().unwrap();
            let ask = Ask {
                node: node(1),
                region: Some(&label),
                digest,
                layout,
                want: &want,
                urgent: None,
                max: 1,
                stalled: false,
            };
            let Choice::Give(_, send) = ledger.choose(&ask, n) else { panic!("a new blob is given") };
            ledger.ended(send);
            assert!(ledger.cells <= CELLS_MAX);
            assert_eq!(
                ledger.cells,
                ledger.blobs.values().flat_map(|b| b.regions.values()).map(|c| c.len()).sum::<usize>()
            );
        }
    }
}
