//! Machines of their own for a coordinator and its nodes: a network namespace each, joined by a
//! bridge that also has an address here, and partitions by nftables.
//!
//! Datagrams are dropped where they arrive, as networks lose them: whoever sends is told nothing.
//! Everything is named after this process and goes when [`Netns`] does; what a killed test left
//! goes at the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{Mesh, Options, Web, is_root, partition::Net};

/// Begins every name.
const PREFIX: &str = "h3t";
/// Networks for benchmarks (RFC 2544): nobody else is there. Each test takes 8 addresses.
const NETWORK: u32 = 0xC612_0000;
const ADDRESSES: u32 = 8;
const NETWORKS: u32 = (1 << 17) / ADDRESSES;
/// Where the agents' own gateways are, each within its namespace.
const LOCAL: &str = "127.0.0.1:7440";

struct Place {
    netns: String,
    /// The end of its cable that is at the bridge.
    veth: String,
    address: Ipv4Addr,
}

/// See the module.
pub struct Netns {
    bridge: String,
    host: Ipv4Addr,
    places: BTreeMap<&'static str, Place>,
    /// What is cut: from, to.
    cut: Mutex<BTreeSet<(String, String)>>,
}

impl Netns {
    /// A namespace for the coordinator and each of `nodes`, at most five. `None`: not without root.
    ///
    /// # Panics
    /// They cannot be made.
    #[must_use]
    pub fn new(nodes: &[&'static str]) -> Option<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        if !is_root("a network namespace") {
            return None;
        }
        sweep();
        let (pid, nth) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let net = NETWORK + (pid + nth * 257) % NETWORKS * ADDRESSES;
        let address = |n: usize| Ipv4Addr::from(net + 1 + u32::try_from(n).unwrap_or(u32::MAX));
        // At most 15 characters.
        let name = |what: &str| format!("{PREFIX}{pid}{what}{}", nth % 10);
        let all = std::iter::once(&"coordinator").chain(nodes).enumerate();
        let place = |(n, of): (usize, &&'static str)| {
            let place = Place {
                netns: name(&format!("n{n}")),
                veth: name(&format!("v{n}")),
                address: address(n + 1),
            };
            (*of, place)
        };
        let made = Self {
            bridge: name("b"),
            host: address(0),
            places: all.map(place).collect(),
            cut: Mutex::default(),
        };
        // From here on it is removed if anything fails.
        made.make();
        Some(made)
    }

    fn make(&self) {
        let bridge = self.bridge.as_str();
        must(&["link", "add", bridge, "type", "bridge"]);
        must(&["addr", "add", &format!("{}/29", self.host), "dev", bridge]);
        must(&["link", "set", bridge, "up"]);
        for place in self.places.values() {
            let (netns, veth) = (place.netns.as_str(), place.veth.as_str());
            must(&["netns", "add", netns]);
            let peer = ["peer", "name", "eth0", "netns", netns];
            must(&[&["link", "add", veth, "type", "veth"][..], &peer].concat());
            must(&["link", "set", veth, "master", bridge, "up"]);
            let address = format!("{}/29", place.address);
            must(&["-n", netns, "addr", "add", &address, "dev", "eth0"]);
            must(&["-n", netns, "link", "set", "eth0", "up"]);
            must(&["-n", netns, "link", "set", "lo", "up"]);
        }
    }

    /// A mesh whose processes run there, with nothing enrolled, every agent with a gateway of its
    /// own.
    #[must_use]
    pub fn options(&self) -> Options {
        let words = |place: &Place| {
            let words = ["ip", "netns", "exec", &place.netns];
            words.map(str::to_owned).to_vec()
        };
        let before = self.places.iter().map(|(name, at)| (*name, words(at)));
        Options {
            agent_config: format!("[gateway]\nlisten = \"{LOCAL}\"\n"),
            listen: Some(self.place("coordinator").address.into()),
            before: before.collect(),
            ..Options::default()
        }
    }

    fn place(&self, name: &str) -> &Place {
        let place = self.places.get(name);
        place.unwrap_or_else(|| panic!("{name} has no namespace"))
    }

    /// Has `to` drop what comes from exactly those whose way to it is cut.
    fn filter(&self, to: &str, cut: &BTreeSet<(String, String)>) {
        let at = self.place(to);
        let rules: String = cut
            .iter()
            .filter(|(_, receiver)| receiver == to)
            .map(|(from, _)| {
                let (from, to) = (self.place(from).address, at.address);
                format!("ip saddr {from} ip daddr {to} drop\n")
            })
            .collect();
        let hook = "type filter hook input priority 0; policy accept;";
        let table = format!(
            "table ip hop3\ndelete table ip hop3\n\
             table ip hop3 {{\nchain arrives {{\n{hook}\n{rules}}}\n}}\n"
        );
        let mut child = Command::new("ip")
            .args(["netns", "exec", &at.netns, "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("nft: {error}"));
        let written = child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(table.as_bytes()));
        let ended = child.wait();
        let well = matches!(written, Some(Ok(()))) && ended.is_ok_and(|status| status.success());
        assert!(well, "nftables did not take this at {to}:\n{table}");
    }
}

impl Net for Netns {
    fn cut(&self, node: &str, up: bool, down: bool) {
        let mut all = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        for (from, to, cut) in [(node, "coordinator", up), ("coordinator", node, down)] {
            let way = (from.to_owned(), to.to_owned());
            let _ = if cut {
                all.insert(way)
            } else {
                all.remove(&way)
            };
            self.filter(to, &all);
        }
    }

    fn local(&self, mesh: &Mesh, node: &str) -> Option<Web> {
        let netns = named(&self.place(node).netns);
        Some(Web::local_at(mesh, node, LOCAL, Some(netns)))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        for place in self.places.values() {
            let _ = ip(&["link", "del", &place.veth]);
            let _ = ip(&["netns", "del", &place.netns]);
        }
        let _ = ip(&["link", "del", &self.bridge]);
    }
}

fn named(netns: &str) -> PathBuf {
    Path::new("/run/netns").join(netns)
}

/// Runs `ip`; what it says if it fails.
fn ip(args: &[&str]) -> Result<String, String> {
    let ran = Command::new("ip").args(args).stdin(Stdio::null()).output();
    let ran = ran.map_err(|error| format!("ip (Debian: iproute2): {error}"))?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ran.stderr);
    Err(format!("ip {}: {said}", args.join(" ")))
}

#[track_caller]
fn must(args: &[&str]) {
    ip(args).unwrap_or_else(|error| panic!("{error}"));
}

/// Removes what processes left that are gone.
fn sweep() {
    let gone = |name: &&str| {
        let rest = name.strip_prefix(PREFIX).unwrap_or_default();
        let pid = rest.split(|c: char| !c.is_ascii_digit()).next();
        let pid = pid.filter(|pid| !pid.is_empty());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    let first = |text: &str| {
        text.split([' ', ':', '@'])
            .find(|w| !w.is_empty())
            .map(str::to_owned)
    };
    let spaces = ip(&["netns", "list"]).unwrap_or_default();
    for name in spaces.lines().filter_map(first) {
        if gone(&name.as_str()) {
            let _ = ip(&["netns", "del", &name]);
        }
    }
    let links = ip(&["-o", "link", "show"]).unwrap_or_default();
    let links = links
        .lines()
        .filter_map(|line| first(line.split_once(": ")?.1));
    for name in links {
        if gone(&name.as_str()) {
            let _ = ip(&["link", "del", &name]);
        }
    }
}
