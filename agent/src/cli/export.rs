//! Where a pulled image goes: nowhere (it is in the agent's store), an OCI layout, an archive for `docker load`.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result};
use serde_json::json;
use shoal_proto::name::{Reference, Repository};

use super::{
    fetch::{BlobStream, Manifest},
    out::Usage,
    progress::Line,
    tar::Archive,
};
use crate::http::manifest::Descriptor;

/// `-o`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// `oci:DIR`.
    Oci(PathBuf),
    /// `docker-archive:FILE`.
    Archive(PathBuf),
}

impl FromStr for Target {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        match text.split_once(':') {
            Some(("oci", path)) if !path.is_empty() => Ok(Self::Oci(path.into())),
            Some(("docker-archive", path)) if !path.is_empty() => Ok(Self::Archive(path.into())),
            Some(_) | None => Err(Usage(format!("`{text}`: write oci:DIR or docker-archive:FILE"))),
        }
    }
}

/// Reads a stream to its end into `write`.
async fn copy(mut blob: BlobStream, line: Line, mut write: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
    while let Some(data) = blob.next().await? {
        // A local file's page cache: short enough to stay on this thread, which does nothing else.
        write(&data)?;
        line.at(blob.at());
    }
    line.done();
    Ok(())
}

/// Reads a stream and lets it go: the agent has it then.
pub(super) async fn discard(blob: BlobStream, line: Line) -> Result<()> {
    copy(blob, line, |_| Ok(())).await
}

/// An OCI image layout (image-spec, "Image Layout").
#[derive(Debug)]
pub(super) struct Layout {
    dir: PathBuf,
}

impl Layout {
    pub(super) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs")).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    fn path(&self, descriptor: &shoal_proto::Digest) -> PathBuf {
        self.dir.join("blobs").join(descriptor.algorithm().as_str()).join(descriptor.hex())
    }

    /// Written beside and renamed once the digest is right: a blob's name never stands on wrong bytes.
    pub(super) async fn blob(&self, descriptor: &Descriptor, blob: BlobStream, line: Line) -> Result<()> {
        let path = self.path(&descriptor.digest);
        let failed = || format!("cannot write {}", path.display());
        fs::create_dir_all(path.parent().context("a blob's path has a folder")?).with_context(failed)?;
        let part = path.with_extension("part");
        let mut file = BufWriter::new(File::create(&part).with_context(failed)?);
        copy(blob.checked(), line, |data| file.write_all(data)).await.with_context(failed)?;
        file.flush().with_context(failed)?;
        fs::rename(&part, &path).with_context(failed)
    }

    /// Writes the manifest and what leads to it.
    pub(super) fn finish(&self, manifest: &Manifest, reference: &Reference) -> Result<()> {
        let path = self.path(&manifest.digest);
        let failed = || format!("cannot write to {}", self.dir.display());
        fs::create_dir_all(path.parent().context("a blob's path has a folder")?).with_context(failed)?;
        fs::write(&path, &manifest.bytes).with_context(failed)?;
        let mut descriptor = json!({
            "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.bytes.len(),
        });
        if let Reference::Tag(tag) = reference {
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [descriptor],
        });
        fs::write(self.dir.join("index.json"), index.to_string()).with_context(failed)?;
        fs::write(self.dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").with_context(failed)
    }
}

/// An archive as `docker save` makes it, for `docker load`.
#[derive(Debug)]
pub(super) struct DockerArchive {
    path: PathBuf,
    part: PathBuf,
    archive: Archive<BufWriter<File>>,
}

impl DockerArchive {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
        Ok(Self { path: path.to_owned(), part, archive: Archive::new(BufWriter::new(file)) })
    }

    fn name(descriptor: &Descriptor, config: bool) -> String {
        let hex = descriptor.digest.hex();
        // A name is at most 100 bytes; 32 bytes of a sha512 are as good a name.
        format!("{}.{}", &hex[..64], if config { "json" } else { "tar" })
    }

    /// Adds a blob; its place in the image is told by [`DockerArchive::finish`].
    pub(super) async fn blob(
        &mut self,
        descriptor: &Descriptor,
        config: bool,
        blob: BlobStream,
        line: Line,
    ) -> Result<()> {
        let failed = || "cannot write the archive".to_owned();
        self.archive.file(&Self::name(descriptor, config), descriptor.size).with_context(failed)?;
        let archive = &mut self.archive;
        copy(blob.checked(), line, |data| archive.data(data)).await.with_context(failed)
    }

    /// Writes what leads to the blobs, and gives the file its name.
    pub(super) fn finish(
        mut self,
        repository: &Repository,
        reference: &Reference,
        config: &Descriptor,
        layers: &[Descriptor],
    ) -> Result<()> {
        let tags: Vec<_> = match reference {
            Reference::Tag(tag) => vec![format!("{repository}:{tag}")],
            Reference::Digest(_) => Vec::new(),
        };
        let layers: Vec<_> = layers.iter().map(|layer| Self::name(layer, false)).collect();
        let manifest = json!([{ "Config": Self::name(config, true), "RepoTags": tags, "Layers": layers }]).to_string();
        self.archive.file("manifest.json", manifest.len() as u64)?;
        self.archive.data(manifest.as_bytes())?;
        let file = self.archive.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&self.part, &self.path).with_context(|| format!("cannot write {}", self.path.display()))
    }
}
