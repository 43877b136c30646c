//! As much of tar (POSIX ustar) as an archive of a few plain files needs.

use std::io::{self, Write};

const BLOCK: u64 = 512;
/// The largest size that ustar's eleven octal digits hold; larger ones go in the base-256 form of GNU tar.
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// Writes an archive.
#[derive(Debug)]
pub(super) struct Archive<W> {
    inner: W,
    /// Bytes of the current file that are to come.
    left: u64,
    padding: u64,
}

impl<W: Write> Archive<W> {
    pub(super) const fn new(inner: W) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    /// Begins a file of `size` bytes; exactly so many must follow by [`Archive::data`].
    pub(super) fn file(&mut self, name: &str, size: u64) -> io::Result<()> {
        assert_eq!(self.left, 0, "the file before is whole");
        if name.len() > 100 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a name in the archive is over 100 bytes"));
        }
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        if size <= OCTAL_MAX {
            header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        } else {
            header[124] = 0x80;
            header[128..136].copy_from_slice(&size.to_be_bytes());
        }
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        self.inner.write_all(&header)?;
        self.pad()
    }

    /// The next bytes of the current file.
    pub(super) fn data(&mut self, data: &[u8]) -> io::Result<()> {
        let left = self.left.checked_sub(data.len() as u64);
        self.left = left.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "more bytes than the file has"))?;
        self.inner.write_all(data)?;
        self.pad()
    }

    fn pad(&mut self) -> io::Result<()> {
        if self.left == 0 {
            let padding = usize::try_from(std::mem::take(&mut self.padding)).expect("less than a block");
            self.inner.write_all(&[0; 512][..padding])?;
        }
        Ok(())
    }

    /// Ends the archive.
    pub(super) fn finish(mut self) -> io::Result<W> {
        assert_eq!(self.left, 0, "the last file is whole");
        self.inner.write_all(&[0; 1024])?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}
