//! Nodes remembered across restarts: with them an agent that starts while the seeder is down finds its fleet.
//!
//! A plain file beside the store, written whole and renamed. It is a hint: lost or damaged, it is made anew.

use std::{fs, io, path::PathBuf};

use bincode::{Decode, Encode};
use shoal_proto::{codec, message::PeerInfo};

use super::Shell;

/// The file within the data folder.
const FILE: &str = "peers";
/// Nodes remembered. A few dozen are enough to find all others; some will be gone.
const KNOWN_MAX: usize = 64;
/// Largest file that is read.
const FILE_LEN_MAX: usize = 256 << 10;

#[derive(Debug, Encode, Decode)]
struct File {
    /// Raised when the form changes; another one is not read.
    version: u32,
    peers: Vec<PeerInfo>,
}

const VERSION: u32 = 1;

impl Shell {
    fn known_file(&self) -> PathBuf {
        self.config.data_dir.join(FILE)
    }

    /// Takes up the nodes of the last run.
    pub(super) fn load_known(&mut self) {
        let Ok(bytes) = fs::read(self.known_file()) else { return };
        match codec::decode::<File, FILE_LEN_MAX>(&bytes) {
            Ok(file) if file.version == VERSION => {
                for info in file.peers.into_iter().take(KNOWN_MAX) {
                    if let Some(peer) = self.know(info, false)
                        && let Some(known) = self.peers.arena.get_mut(peer)
                    {
                        known.proven = true;
                    }
                }
            }
            Ok(_) | Err(_) => tracing::warn!("the file of remembered peers is not readable and will be made anew"),
        }
    }

    /// Remembers nodes that were connected, those that still are first.
    pub(super) fn save_known(&self) {
        let mut proven: Vec<_> = self
            .peers
            .arena
            .iter()
            .map(|(_, known)| known)
            .filter(|known| known.proven && !known.info.peer.is_empty())
            .collect();
        if proven.is_empty() {
            return;
        }
        proven.sort_by_key(|known| known.link.is_none());
        let peers = proven.into_iter().take(KNOWN_MAX).map(|known| known.info.clone()).collect();
        let bytes = codec::encode(&File { version: VERSION, peers });
        let (path, part) = (self.known_file(), self.config.data_dir.join("peers.part"));
        let write = || -> io::Result<()> {
            fs::write(&part, &bytes)?;
            fs::rename(&part, &path)
        };
        if let Err(error) = write() {
            tracing::warn!(%error, "peers cannot be remembered");
        }
    }
}
