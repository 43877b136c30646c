//! `shoal image ls | rm | pin | unpin | verify`.

use anyhow::{Context, Result, bail};
use http::Method;
use shoal_proto::{Digest, name::Reference};

use super::{
    AdminArgs,
    admin::Admin,
    out::{Out, human},
    reference::ImageName,
};
use crate::admin::{Image, Removed, Verified};

#[derive(Debug, clap::Subcommand)]
pub(super) enum ImageCommand {
    /// List the images
    Ls(AdminArgs),
    /// Remove an image, and the blobs that no other image needs
    Rm(OneImage),
    /// Keep an image whatever the quota says
    Pin(OneImage),
    /// Let an image go when room is needed
    Unpin(OneImage),
    /// Hash what is stored of an image again
    Verify(OneImage),
}

#[derive(Debug, clap::Args)]
pub(super) struct OneImage {
    /// NAME, NAME:TAG, NAME@DIGEST or DIGEST
    image: String,
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(command: &ImageCommand, out: &mut Out) -> Result<()> {
    match command {
        ImageCommand::Ls(args) => ls(args, out).await,
        ImageCommand::Rm(one) => rm(one, out).await,
        ImageCommand::Pin(one) => pin(one, "pin", out).await,
        ImageCommand::Unpin(one) => pin(one, "unpin", out).await,
        ImageCommand::Verify(one) => verify(one, out).await,
    }
}

pub(super) async fn list(admin: &Admin) -> Result<Vec<Image>> {
    admin.ask(Method::GET, "/images").await?.context("the agent does not know the question; is it of this version?")
}

async fn ls(args: &AdminArgs, out: &mut Out) -> Result<()> {
    let images = list(&Admin::of(&args.data_dir)).await?;
    if args.json {
        return out.json(&images);
    }
    show(&images, out);
    Ok(())
}

pub(super) fn show(images: &[Image], out: &mut Out) {
    let rows: Vec<_> = images
        .iter()
        .map(|image| {
            let tags = if image.tags.is_empty() { "-".to_owned() } else { image.tags.join(",") };
            let state = if image.complete { "whole" } else { "partial" };
            let pinned = if image.pinned { "pinned" } else { "" };
            let digest = image.digest.to_string().chars().take(19).collect();
            vec![image.repository.clone(), tags, digest, human(image.size), state.to_owned(), pinned.to_owned()]
        })
        .collect();
    out.table(&["REPOSITORY", "TAGS", "DIGEST", "SIZE", "STATE", "PINNED"], &rows);
}

/// The digest of the image that was meant.
pub(super) fn find(images: &[Image], text: &str) -> Result<Digest> {
    if let Ok(digest) = text.parse::<Digest>() {
        let known = images.iter().any(|image| image.digest == digest);
        return if known { Ok(digest) } else { bail!("this agent has no image {digest}") };
    }
    let name: ImageName = text.parse()?;
    let fits = |image: &&Image| {
        image.repository == name.repository.as_str()
            && match &name.reference {
                Reference::Digest(digest) => image.digest == *digest,
                Reference::Tag(tag) => image.tags.iter().any(|found| found == tag.as_str()),
            }
    };
    let found = images.iter().find(fits).map(|image| image.digest);
    found.with_context(|| format!("this agent has no image {name}; `shoal image ls` shows what it has"))
}

async fn rm(one: &OneImage, out: &mut Out) -> Result<()> {
    let admin = Admin::of(&one.admin.data_dir);
    let digest = find(&list(&admin).await?, &one.image)?;
    let removed: Removed =
        admin.ask(Method::DELETE, &format!("/images/{digest}")).await?.context("the image has gone meanwhile")?;
    if one.admin.json {
        return out.json(&removed);
    }
    let busy = if removed.busy > 0 { format!("; {} in use go later", removed.busy) } else { String::new() };
    out.line(&format!("removed {digest}: {} blobs{busy}", removed.blobs));
    Ok(())
}

async fn pin(one: &OneImage, what: &str, out: &mut Out) -> Result<()> {
    let admin = Admin::of(&one.admin.data_dir);
    let digest = find(&list(&admin).await?, &one.image)?;
    if !admin.tell(Method::POST, &format!("/images/{digest}/{what}")).await? {
        bail!("the image has gone meanwhile");
    }
    if one.admin.json {
        return out.json(&serde_json::json!({ "digest": digest, "pinned": what == "pin" }));
    }
    out.line(&format!("{what}ned {digest}"));
    Ok(())
}

async fn verify(one: &OneImage, out: &mut Out) -> Result<()> {
    let admin = Admin::of(&one.admin.data_dir);
    let digest = find(&list(&admin).await?, &one.image)?;
    let found: Verified =
        admin.ask(Method::POST, &format!("/images/{digest}/verify")).await?.context("the image has gone meanwhile")?;
    if one.admin.json {
        return out.json(&found);
    }
    out.line(&format!("{digest}: {} pieces hashed, {} damaged", found.checked, found.bad));
    if found.bad > 0 {
        bail!("damaged pieces were taken out; the next pull fetches them again");
    }
    Ok(())
}
