//! `shoal-seeder key …`, `join-token …`, `member …` and `user …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::Value;
use shoal_seeder::{
    Config, Seeder,
    admin::{self, AskError},
    keys,
    members::order::{LabelTexts, Order, RootKey},
    users::{Grants, Pattern},
};

use crate::{Common, config, say};

/// What is done with join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it. Whoever has it can join the fleet: hand it over as a secret.
    Create(Create),
    /// List the tokens, without their secrets.
    List(Common),
    /// Take a token back. Who has joined by it stays a member.
    Revoke(Named),
}

/// What is done with members.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// List the members.
    List(Common),
    /// Revoke a member: others close their connections to it as soon as they hear of it.
    Revoke(Named),
}

/// What is done with the fleet's keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Copy the root key to a new file, to be kept offline.
    ExportRoot(ExportRoot),
    /// Make a new key for every purpose. What the old ones have signed holds for two rotations more; nothing restarts.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
pub(crate) struct ExportRoot {
    #[command(flatten)]
    common: Common,
    /// Where to; it must not exist.
    to: PathBuf,
    /// Take it out of the data directory: from then on rotations need `--root-key`.
    #[arg(long)]
    remove: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    common: Common,
    /// The file of the root key [default: root.key in the data directory]
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
}

/// What is done with users.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make a user and print its password, or give one other rights and another password. `anonymous` is whoever shows
    /// nothing, and has none.
    Put(Put),
    /// List the users and what they may do.
    List(Common),
    /// Remove a user.
    Remove(Named),
}

#[derive(Debug, Args)]
pub(crate) struct Put {
    #[command(flatten)]
    common: Common,
    /// Its name.
    name: String,
    /// What it may read: `team/app`, `team/**` or `**`; may be repeated.
    #[arg(long, value_name = "REPOSITORIES")]
    pull: Vec<Pattern>,
    /// What it may write, and read; may be repeated.
    #[arg(long, value_name = "REPOSITORIES")]
    push: Vec<Pattern>,
    /// What it may delete; may be repeated.
    #[arg(long, value_name = "REPOSITORIES")]
    delete: Vec<Pattern>,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    common: Common,
    /// How many nodes may join by it.
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
    /// For how long it is good, such as `30m`, `12h` or `7d`.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    ttl: u64,
    /// Where the nodes stand, such as `region=eu,zone=a,site=rack7`.
    #[arg(long, value_name = "LABELS", default_value = "")]
    labels: LabelTexts,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    #[command(flatten)]
    common: Common,
    /// Its id or name, as the list shows it.
    id: String,
}

fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no time; write it like 90s, 30m, 12h or 7d");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).filter(|seconds| *seconds > 0).ok_or_else(wrong)
}

pub(crate) async fn tokens(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create(args) => {
            let config = config(&args.common, |_| {})?;
            let made = execute(&config, Order::CreateToken { uses: args.uses, ttl_s: args.ttl, labels: args.labels });
            say(&mut std::io::stdout(), made.await?["token"].as_str().unwrap_or_default());
            Ok(())
        }
        TokenCommand::List(args) => list(&config(&args, |_| {})?, "id", |after| Order::ListTokens { after }).await,
        TokenCommand::Revoke(args) => {
            let config = config(&args.common, |_| {})?;
            execute(&config, Order::RevokeToken { id: args.id }).await.map(|_| ())
        }
    }
}

pub(crate) async fn members(command: MemberCommand) -> anyhow::Result<()> {
    match command {
        MemberCommand::List(args) => list(&config(&args, |_| {})?, "node", |after| Order::ListMembers { after }).await,
        MemberCommand::Revoke(args) => {
            let config = config(&args.common, |_| {})?;
            let revoked = execute(&config, Order::RevokeMember { node: args.id }).await?;
            say(&mut std::io::stdout(), &revoked.to_string());
            if let Some(token) = revoked["token"].as_str() {
                let note =
                    format!("a token with uses left lets another key in: shoal-seeder join-token revoke {token}");
                say(&mut std::io::stderr(), &note);
            } else if let Some(cluster) = revoked["kubernetes"]["cluster"].as_str() {
                let note = format!("{cluster} may vouch for another key there: take its rule out of join.kubernetes");
                say(&mut std::io::stderr(), &note);
            }
            Ok(())
        }
    }
}

pub(crate) async fn keys(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::ExportRoot(args) => {
            let config = config(&args.common, |_| {})?;
            keys::export_root(&config.data_dir, &args.to, args.remove)?;
            Ok(())
        }
        KeyCommand::Rotate(args) => {
            let config = config(&args.common, |_| {})?;
            let path = args.root_key.unwrap_or_else(|| keys::root_path(&config.data_dir));
            let root = RootKey(hex::encode(keys::read_root(&path)?));
            let done = execute(&config, Order::RotateKeys { root }).await?;
            say(&mut std::io::stdout(), &done.to_string());
            Ok(())
        }
    }
}

pub(crate) async fn users(command: UserCommand) -> anyhow::Result<()> {
    match command {
        UserCommand::Put(args) => {
            let config = config(&args.common, |_| {})?;
            let grants = Grants { pull: args.pull, push: args.push, delete: args.delete };
            let made = execute(&config, Order::PutUser { name: args.name, grants }).await?;
            if let Some(password) = made["password"].as_str() {
                say(&mut std::io::stdout(), password);
            }
            Ok(())
        }
        UserCommand::List(args) => list(&config(&args, |_| {})?, "name", |_| Order::ListUsers).await,
        UserCommand::Remove(args) => {
            let config = config(&args.common, |_| {})?;
            execute(&config, Order::RemoveUser { name: args.id }).await.map(|_| ())
        }
    }
}

/// Prints one JSON object a line.
async fn list(config: &Config, name: &str, order: impl Fn(Option<String>) -> Order) -> anyhow::Result<()> {
    let mut after = None;
    loop {
        let page = execute(config, order(after)).await?;
        let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        for item in items {
            say(&mut std::io::stdout(), &item.to_string());
        }
        after = items.last().and_then(|item| item[name].as_str()).map(str::to_owned);
        if page["more"] != true || after.is_none() {
            return Ok(());
        }
    }
}

/// By the seeder that runs, else on its store.
async fn execute(config: &Config, order: Order) -> anyhow::Result<Value> {
    match admin::execute(&config.data_dir, &order).await {
        Err(AskError::NotRunning) => Ok(Seeder::execute(config, order).await?),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(["90s", "30m", "12h", "7d"].map(seconds), [Ok(90), Ok(1800), Ok(43_200), Ok(604_800)]);
        for bad in ["", "5", "h", "0s", "-1h", "1w", "99999999999999999999d"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
