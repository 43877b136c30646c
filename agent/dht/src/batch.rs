//! Announcements to one node in one message: Kademlia's own carry one key each, and a node has hundreds.
//!
//! On a stream of [`PROTOCOL`] the sender writes `(addresses: Vec<Vec<u8>>, keys: Vec<[u8; 32]>)` and ends; the answer is
//! how many of the keys are kept, a `u32`. Both are in `shoal_proto::codec`'s encoding; the addresses are binary
//! multiaddrs of the sender, who is the holder: nobody announces another.

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{Multiaddr, StreamProtocol, request_response};
use shoal_proto::{codec, signed::DiscoveryKey};

use crate::records::{ADDRESS_LEN_MAX, ADDRESSES_MAX, KEY_LEN};

/// The protocol's name.
pub const PROTOCOL: StreamProtocol = StreamProtocol::new("/shoal/announce/1");
/// Keys in one message: 32 KiB, which one packet train carries. Who has more sends more messages.
pub const KEYS_MAX: usize = 1024;
/// Longest message in bytes: keys, addresses, and their lengths.
const MESSAGE_LEN_MAX: usize = KEYS_MAX * KEY_LEN + ADDRESSES_MAX * (ADDRESS_LEN_MAX + 2) + 16;
/// Longest answer in bytes.
const ANSWER_LEN_MAX: usize = 8;
/// Messages of one connection that are read at once: a sender waits for each answer.
const STREAMS_MAX: usize = 2;
/// Who has not answered by then is not among those who keep the record.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The sender holds something under each of the keys, and is reached at the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Where the sender is reached.
    pub addresses: Vec<Multiaddr>,
    /// Under which keys it holds something.
    pub keys: Vec<DiscoveryKey>,
}

/// Announcements on the wire.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wire;

/// libp2p's half: streams, time limits, dials.
pub type Behaviour = request_response::Behaviour<Wire>;

/// A behaviour that sends and receives announcements.
#[must_use]
pub fn behaviour() -> Behaviour {
    let config =
        request_response::Config::default().with_request_timeout(TIMEOUT).with_max_concurrent_streams(STREAMS_MAX);
    Behaviour::with_codec(Wire, [(PROTOCOL, request_response::ProtocolSupport::Full)], config)
}

impl Announcement {
    fn encode(&self) -> Vec<u8> {
        let addresses: Vec<Vec<u8>> = self.addresses.iter().map(Multiaddr::to_vec).collect();
        codec::encode(&(addresses, &self.keys))
    }

    /// Reads a message.
    ///
    /// # Errors
    /// It is none, or names more keys or addresses than one may.
    pub fn decode(bytes: &[u8]) -> io::Result<Self> {
        type Parts = (Vec<Vec<u8>>, Vec<DiscoveryKey>);
        let (addresses, keys): Parts = codec::decode::<Parts, MESSAGE_LEN_MAX>(bytes).map_err(io::Error::other)?;
        if keys.len() > KEYS_MAX || addresses.len() > ADDRESSES_MAX {
            return Err(io::Error::other("an announcement names more keys or addresses than one may"));
        }
        let addresses: Result<_, _> = addresses.into_iter().map(Multiaddr::try_from).collect();
        Ok(Self { addresses: addresses.map_err(io::Error::other)?, keys })
    }
}

/// Reads to the end of the stream, at most `limit` bytes.
async fn read_all<T: AsyncRead + Unpin + Send>(io: &mut T, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    io.take(limit as u64 + 1).read_to_end(&mut bytes).await?;
    if bytes.len() > limit {
        return Err(io::Error::other(format!("a message of more than {limit} bytes")));
    }
    Ok(bytes)
}

async fn write_all<T: AsyncWrite + Unpin + Send>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.close().await
}

impl request_response::Codec for Wire {
    type Protocol = StreamProtocol;
    type Request = Announcement;
    type Response = u32;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Announcement>
    where
        T: AsyncRead + Unpin + Send,
    {
        Announcement::decode(&read_all(io, MESSAGE_LEN_MAX).await?)
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<u32>
    where
        T: AsyncRead + Unpin + Send,
    {
        codec::decode::<u32, ANSWER_LEN_MAX>(&read_all(io, ANSWER_LEN_MAX).await?).map_err(io::Error::other)
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Announcement) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_all(io, &request.encode()).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, kept: u32) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write_all(io, &codec::encode(&kept)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(keys: usize, addresses: usize) -> Announcement {
        let key = |n: usize| {
            let mut key = [0xff; KEY_LEN];
            key[..8].copy_from_slice(&(n as u64).to_le_bytes());
            key
        };
        let long = "/ip6/2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/tcp/65535/tls";
        Announcement { addresses: vec![long.parse().unwrap(); addresses], keys: (0..keys).map(key).collect() }
    }

    #[test]
    fn the_largest_announcement_fits_and_a_larger_one_is_refused() {
        let largest = announcement(KEYS_MAX, ADDRESSES_MAX);
        assert_eq!(Announcement::decode(&largest.encode()).unwrap(), largest);
        assert!(Announcement::decode(&announcement(KEYS_MAX + 1, 0).encode()).is_err());
        assert!(Announcement::decode(&announcement(1, ADDRESSES_MAX + 1).encode()).is_err());
    }

    #[test]
    fn what_is_no_announcement_is_an_error() {
        let good = announcement(3, 2).encode();
        for end in 0..good.len() {
            assert!(Announcement::decode(&good[..end]).is_err(), "{end} bytes of {}", good.len());
        }
        assert!(Announcement::decode(&[good.as_slice(), &[0]].concat()).is_err());
        // An address that is none: a protocol that does not exist.
        assert!(Announcement::decode(&codec::encode(&(vec![vec![0xff_u8, 0x7f]], vec![[1_u8; KEY_LEN]]))).is_err());
    }
}
