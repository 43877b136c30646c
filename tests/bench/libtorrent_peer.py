"""One libtorrent peer of the bench, or the torrent file that its peers share.

    libtorrent_peer.py make FILE PIECE_LENGTH TORRENT
    libtorrent_peer.py peer TORRENT FOLDER IP [--seed] [--super-seed] [--set KEY=VALUE ...]

A peer prints `listening PORT` and waits for a line on its standard input: `start IP:PORT ...` adds the torrent (a leecher
has none until then) and connects to those peers. A leecher prints `done` when every piece has been written and its hash
was right. It ends when its input does.
"""

import argparse
import sys

import libtorrent as lt

# Found by trial on loopback and on shaped links. Everything else is libtorrent's default.
SETTINGS = {
    "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.error_notification,
    # Nothing but the swarm itself.
    "enable_dht": False,
    "enable_lsd": False,
    "enable_natpmp": False,
    "enable_upnp": False,
    "announce_to_all_trackers": False,
    # TCP in the clear is its fastest way.
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "in_enc_policy": 2,
    "out_enc_policy": 2,
    # All start at once and know each other: no reason to connect slowly.
    "smooth_connects": False,
    "connection_speed": 500,
    "torrent_connect_boost": 255,
    "listen_queue_size": 128,
    "min_reconnect_time": 1,
    "allow_multiple_connections_per_ip": True,
    "ssrf_mitigation": False,
    # A swarm of friends needs no tit for tat.
    "unchoke_slots_limit": 64,
    "max_failcount": 20,
}


def make(path, piece_length, torrent):
    files = lt.file_storage()
    lt.add_files(files, path)
    creator = lt.create_torrent(files, piece_length, lt.create_torrent.v1_only)
    lt.set_piece_hashes(creator, path.rsplit("/", 1)[0])
    with open(torrent, "wb") as out:
        out.write(lt.bencode(creator.generate()))


def say(text):
    print(text, flush=True)


def value_of(text):
    if text in ("true", "false"):
        return text == "true"
    return int(text)


def next_alert(session, kinds):
    """Waits for an alert of these kinds; an error of the torrent ends the process."""
    while True:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, (lt.torrent_error_alert, lt.file_error_alert, lt.listen_failed_alert)):
                print(f"libtorrent: {type(alert).__name__}: {alert}", file=sys.stderr, flush=True)
                sys.exit(1)
            if isinstance(alert, kinds):
                return alert


def peer(options):
    settings = dict(SETTINGS, listen_interfaces=f"{options.ip}:0", outgoing_interfaces="")
    settings.update((key, value_of(value)) for key, value in (pair.split("=") for pair in options.set))
    session = lt.session(settings)
    port = next_alert(session, lt.listen_succeeded_alert).port
    say(f"listening {port}")
    add = {
        "ti": lt.torrent_info(options.torrent),
        "save_path": options.folder,
        "flags": lt.torrent_flags.update_subscribe | lt.torrent_flags.disable_dht | lt.torrent_flags.disable_lsd,
    }
    if options.seed:
        add["flags"] |= lt.torrent_flags.seed_mode
    if options.super_seed:
        add["flags"] |= lt.torrent_flags.super_seeding
    handle = session.add_torrent(add) if options.seed else None
    word, *peers = sys.stdin.readline().split() or ["end"]
    if word == "start":
        handle = handle or session.add_torrent(add)
        for address in peers:
            ip, peer_port = address.rsplit(":", 1)
            handle.connect_peer((ip, int(peer_port)))
        if not options.seed:
            next_alert(session, lt.torrent_finished_alert)
            say("done")
    sys.stdin.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    makes = commands.add_parser("make")
    makes.add_argument("file")
    makes.add_argument("piece_length", type=int)
    makes.add_argument("torrent")
    peers = commands.add_parser("peer")
    peers.add_argument("torrent")
    peers.add_argument("folder")
    peers.add_argument("ip")
    peers.add_argument("--seed", action="store_true")
    peers.add_argument("--super-seed", action="store_true")
    peers.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    if options.command == "make":
        make(options.file, options.piece_length, options.torrent)
    else:
        peer(options)


main()
