//! `shoal status`.

use anyhow::{Context, Result};
use http::Method;

use super::{
    AdminArgs,
    admin::Admin,
    out::{Out, human},
};
use crate::status::Status;

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) async fn run(args: &StatusArgs, out: &mut Out) -> Result<()> {
    let status: Status = Admin::of(&args.admin.data_dir)
        .ask(Method::GET, "/status")
        .await?
        .context("the agent does not know the question; is it of this version?")?;
    if args.admin.json {
        return out.json(&status);
    }
    show(&status, out);
    Ok(())
}

pub(super) fn show(status: &Status, out: &mut Out) {
    let Status { version, seeder, addresses, store, swarm } = status;
    out.line(&format!("node      {}", swarm.node));
    out.line(&format!("version   {version}"));
    out.line(&format!("seeder    {seeder}"));
    out.line(&format!("registry  {}", addresses.registry));
    out.line(&format!("libp2p    {}   peers {}   status {}", addresses.libp2p, addresses.peer, addresses.status));
    if !swarm.labels.is_empty() {
        out.line(&format!("labels    {}", swarm.labels));
    }
    let (used, quota) = (human(store.bytes), human(store.quota_bytes));
    let (complete, blobs, evicted) = (store.complete, store.blobs, store.evicted);
    out.line(&format!("store     {used} of {quota}, {complete} of {blobs} blobs whole, {evicted} evicted"));
    out.line(&format!(
        "moved     {} from peers, {} from the seeder, {} to peers, {} bad pieces",
        human(swarm.bytes_from_peers),
        human(swarm.bytes_from_seeder),
        human(swarm.bytes_to_peers),
        swarm.bad_pieces
    ));
    out.line(&format!(
        "swarm     {} peers, {} nodes in the DHT, {} readers",
        swarm.peers.len(),
        swarm.dht_nodes,
        swarm.readers
    ));
    if !swarm.peers.is_empty() {
        let cut = |text: &str| text.chars().take(12).collect::<String>();
        let rows: Vec<_> = swarm
            .peers
            .iter()
            .map(|peer| vec![cut(&peer.node), peer.address.clone(), human(peer.bytes_in), human(peer.bytes_out)])
            .collect();
        out.line("");
        out.table(&["PEER", "ADDRESS", "IN", "OUT"], &rows);
    }
    if !swarm.downloads.is_empty() {
        let rows: Vec<_> = swarm
            .downloads
            .iter()
            .map(|download| {
                let pieces = format!("{}/{}", download.stored, download.pieces);
                vec![
                    download.digest.chars().take(19).collect(),
                    human(download.size),
                    pieces,
                    download.peers.to_string(),
                ]
            })
            .collect();
        out.line("");
        out.table(&["FETCHING", "SIZE", "PIECES", "PEERS"], &rows);
    }
    for node in &swarm.banned {
        out.line(&format!("banned    {node}"));
    }
}
