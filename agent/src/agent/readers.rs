//! Clients that read, under the core's ids.

use std::{collections::HashMap, ops::Range};

use shoal_proto::{Digest, layout::Layout};
use shoal_transfer::{
    event::Input,
    ids::{Arena, BlobId, ReaderId},
};

use super::Shell;
use crate::handle;

#[derive(Debug)]
struct Reading {
    reader: handle::ReaderId,
    blob: BlobId,
    /// The piece that it waits for.
    piece: u32,
}

/// Clients of blobs that are open. Bounded by the registry's connections.
#[derive(Debug, Default)]
pub(super) struct Readers {
    arena: Arena<ReaderId, Reading>,
    by_handle: HashMap<handle::ReaderId, ReaderId>,
}

impl Readers {
    pub(super) fn len(&self) -> usize {
        self.arena.len()
    }

    /// The blob is closed, and its readers with it.
    pub(super) fn forget_blob(&mut self, blob: BlobId) {
        let of: Vec<_> = self.arena.iter().filter(|(_, reading)| reading.blob == blob).map(|(id, _)| id).collect();
        for id in of {
            if let Some(reading) = self.arena.remove(id) {
                self.by_handle.remove(&reading.reader);
            }
        }
    }
}

impl Shell {
    /// A blob that is not open is whole: nothing needs to be fetched for its readers.
    pub(super) fn reader_opened(&mut self, digest: &Digest, reader: handle::ReaderId, range: &Range<u64>) {
        let Some((blob, open)) = self.blobs.get(digest) else { return };
        if open.blob.is_complete() {
            return;
        }
        let layout = *open.blob.layout();
        let from = piece_of(&layout, range.start);
        let to = (piece_of(&layout, range.end.saturating_sub(1)) + 1).min(layout.pieces());
        let id = self.readers.arena.insert(Reading { reader, blob, piece: from });
        self.readers.by_handle.insert(reader, id);
        self.feed(Input::ReaderOpened { reader: id, blob, from, to });
    }

    pub(super) fn reader_moved(&mut self, digest: &Digest, reader: handle::ReaderId, position: u64) {
        let Some(&id) = self.readers.by_handle.get(&reader) else { return };
        let Some((_, open)) = self.blobs.get(digest) else { return };
        let piece = piece_of(open.blob.layout(), position);
        if let Some(reading) = self.readers.arena.get_mut(id)
            && reading.piece != piece
        {
            reading.piece = piece;
            self.feed(Input::ReaderMoved { reader: id, piece });
        }
    }

    pub(super) fn reader_closed(&mut self, reader: handle::ReaderId) {
        if let Some(id) = self.readers.by_handle.remove(&reader) {
            self.readers.arena.remove(id);
            self.feed(Input::ReaderClosed { reader: id });
        }
    }
}

/// The piece that holds byte `at`; past the end, the number of pieces.
fn piece_of(layout: &Layout, at: u64) -> u32 {
    layout.piece_at(at).map_or_else(|| layout.pieces(), shoal_proto::layout::PieceIndex::get)
}
