//! `tar | gzip` with a SHA-256 before and after: the layer's digest and its diff id in one pass.

use std::{
    ffi::OsString,
    fs::File,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::Packed;
use crate::image::Hasher;

/// What `tar` is told so that the same files give the same bytes.
const STABLE: [&str; 7] = [
    "--create",
    "--mtime=@0",
    "--owner=0",
    "--group=0",
    "--numeric-owner",
    "--hard-dereference",
    // The process id is part of PAX headers otherwise.
    "--format=gnu",
];
/// Bytes handed on at once.
const CHUNK_LEN: usize = 256 << 10;

/// Packs what `tar` is told by `arguments`, with `list` on its standard input, into the file `name` in `directory`.
pub(super) fn pack(directory: &Path, name: &str, what: &str, arguments: &[OsString], list: Vec<u8>) -> Result<Packed> {
    let mut tar = Command::new("tar")
        .args(STABLE)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start tar")?;
    let mut gzip = Command::new("gzip")
        .args(["-1", "--no-name"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start gzip")?;
    let mut tar_in = tar.stdin.take().expect("piped");
    let tar_out = tar.stdout.take().expect("piped");
    let gzip_in = gzip.stdin.take().expect("piped");
    let gzip_out = gzip.stdout.take().expect("piped");
    let mut tar_errors = tar.stderr.take().expect("piped");
    let file = File::create(directory.join(name)).with_context(|| format!("create {name}"))?;
    let (diff_id, (digest, size), errors) = std::thread::scope(|threads| {
        let listed = threads.spawn(move || tar_in.write_all(&list));
        let complaints = threads.spawn(move || {
            let mut text = String::new();
            tar_errors.read_to_string(&mut text).map(|_| text)
        });
        let plain = threads.spawn(move || copy_hashed(tar_out, gzip_in));
        let packed = copy_hashed(gzip_out, file)?;
        listed.join().expect("no panic")?;
        let (diff_id, _) = plain.join().expect("no panic")?;
        anyhow::Ok((diff_id, packed, complaints.join().expect("no panic")?))
    })
    .with_context(|| format!("pack {name}"))?;
    finish("tar", &mut tar, &errors)?;
    finish("gzip", &mut gzip, "")?;
    Ok(Packed {
        file: name.to_owned(),
        digest: digest.to_string(),
        size,
        diff_id: diff_id.to_string(),
        what: what.to_owned(),
    })
}

fn copy_hashed(mut from: impl Read, mut to: impl Write) -> std::io::Result<(shoal_proto::Digest, u64)> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK_LEN];
    let mut size = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
        size += read as u64;
    }
}

/// Status 1 of `tar` means that a file changed while it was read: its bytes are in the layer all the same.
fn finish(program: &str, child: &mut Child, errors: &str) -> Result<()> {
    let status = child.wait().with_context(|| format!("wait for {program}"))?;
    let changed_while_read = program == "tar" && status.code() == Some(1);
    if !status.success() && !changed_while_read {
        bail!("{program} ended with {status}: {}", errors.lines().next().unwrap_or_default());
    }
    Ok(())
}
