//! What the kernel and a few files say of this system. Reading is apart from understanding: what understands is a function
//! of text. What changes all the time (free memory, load) is no fact; how full a disk is, is told in steps of five per cent.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

/// So many disks and addresses are told.
const LISTED_MAX: usize = 32;
/// No text that is told is longer.
const TEXT_MAX: usize = 256;
/// No file that is read here is longer.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// All of it; what cannot be read is left out.
pub(super) fn facts() -> Map<String, Value> {
    let mut facts = Map::new();
    let mut add = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            facts.insert(name.into(), value);
        }
    };
    add("os", read("/etc/os-release").map(|text| os(&text)));
    add("kernel", line("/proc/sys/kernel/osrelease").map(Value::String));
    add("arch", Some(std::env::consts::ARCH.into()));
    add("hostname", line("/proc/sys/kernel/hostname").map(Value::String));
    let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
    add("cpu", Some(cpu(&cpuinfo)));
    add("memory", read("/proc/meminfo").map(|text| memory(&text)));
    add("disks", read("/proc/self/mounts").map(|text| Value::Array(disks(&text))));
    add("addresses", Some(Value::Array(addresses())));
    let vendor =
        ["/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name"].map(|path| line(path).unwrap_or_default());
    let container = Path::new("/.dockerenv").exists() || Path::new("/run/.containerenv").exists();
    add("virtualisation", Some(virtualisation(&cpuinfo, &vendor.join(" "), container).into()));
    add("boot", line("/proc/sys/kernel/random/boot_id").map(Value::String));
    add(
        "reboot_required",
        Some(["/run/reboot-required", "/var/run/reboot-required"].iter().any(|path| Path::new(path).exists()).into()),
    );
    facts
}

/// A whole small file; files of the kernel have no length of their own.
fn read(path: &str) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

fn line(path: &str) -> Option<String> {
    read(path).map(|text| cut(text.trim()))
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect()
}

/// `os-release`: id, version and name for people.
fn os(text: &str) -> Value {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(cut(value.trim().trim_matches(['"', '\''])))
    };
    let mut os = Map::new();
    for (key, name) in [("id", "ID"), ("version", "VERSION_ID"), ("name", "PRETTY_NAME")] {
        os.extend(field(name).map(|value| (key.to_owned(), Value::String(value))));
    }
    Value::Object(os)
}

fn cpu(text: &str) -> Value {
    let model = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        ["model name", "Model", "cpu model"].contains(&name.trim()).then(|| cut(value.trim()))
    });
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    json!({"count": count, "model": model})
}

/// In bytes.
fn memory(text: &str) -> Value {
    let field = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    json!({"total": field("MemTotal"), "swap": field("SwapTotal")})
}

/// The places of local disks, each disk once: a network's may not answer for ever.
fn places(text: &str) -> Vec<(&str, String, &str)> {
    let mut seen = BTreeSet::new();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?, words.next()?))
        })
        .filter(|(device, place, _)| device.starts_with("/dev/") || *place == "/")
        .filter(|(device, ..)| seen.insert(*device))
        .take(LISTED_MAX)
        .map(|(device, place, kind)| (device, place.replace("\\040", " "), kind))
        .collect()
}

fn disks(text: &str) -> Vec<Value> {
    let of = |(device, place, kind): (&str, String, &str)| {
        let found = nix::sys::statvfs::statvfs(Path::new(&place)).ok()?;
        let total = found.blocks().saturating_mul(found.fragment_size());
        let used = found.blocks().saturating_sub(found.blocks_free());
        Some(json!({
            "mount": cut(&place), "device": cut(device), "type": cut(kind), "total": total,
            "used_percent": used_percent(used, found.blocks()),
        }))
    };
    places(text).into_iter().filter_map(of).collect()
}

/// In full steps of five.
fn used_percent(used: u64, of: u64) -> u64 {
    used.saturating_mul(20).checked_div(of).unwrap_or(0) * 5
}

/// Those that others could reach.
fn addresses() -> Vec<Value> {
    let Ok(all) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut found: Vec<(String, String)> = all
        .filter_map(|one| {
            let address = one.address?;
            let ip = address
                .as_sockaddr_in()
                .map(|v4| std::net::IpAddr::V4(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| std::net::IpAddr::V6(v6.ip())))?;
            let of_link = matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local());
            (!ip.is_loopback() && !of_link).then(|| (cut(&one.interface_name), ip.to_string()))
        })
        .collect();
    found.sort();
    found.dedup();
    found.truncate(LISTED_MAX);
    found.into_iter().map(|(interface, address)| json!({"interface": interface, "address": address})).collect()
}

/// What it runs in: `container`, the name of a hypervisor, `yes` where it has no name, or `none`.
fn virtualisation(cpuinfo: &str, vendor: &str, container: bool) -> &'static str {
    const NAMES: [(&str, &str); 7] = [
        ("QEMU", "kvm"),
        ("KVM", "kvm"),
        ("VMware", "vmware"),
        ("VirtualBox", "virtualbox"),
        ("innotek", "virtualbox"),
        ("Microsoft", "hyperv"),
        ("Xen", "xen"),
    ];
    if container {
        return "container";
    }
    let hypervisor = cpuinfo
        .lines()
        .any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor"));
    let named = NAMES.iter().find(|(word, _)| vendor.contains(word)).map(|(_, name)| *name);
    if hypervisor { named.unwrap_or("yes") } else { "none" }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_system_has_facts() {
        let facts = facts();
        assert!(facts["memory"]["total"].as_u64().unwrap() > 1 << 20, "{facts:?}");
        assert!(facts["cpu"]["count"].as_u64().unwrap() > 0);
        assert!(!facts["disks"].as_array().unwrap().is_empty());
        assert!(!facts["kernel"].as_str().unwrap().is_empty());
        // What is told again is what has changed: twice the same, if nothing has.
        assert_eq!(super::facts().get("cpu"), facts.get("cpu"));
    }

    #[test]
    fn files_are_understood() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n";
        assert_eq!(os(text), json!({"id": "debian", "version": "12", "name": "Debian GNU/Linux 12 (bookworm)"}));
        assert_eq!(memory("MemTotal:  1024 kB\nSwapTotal: 0 kB\n"), json!({"total": 1_048_576, "swap": 0}));
        assert_eq!(cpu("processor\t: 0\nmodel name\t: X 1\n\nprocessor\t: 1\n"), json!({"count": 2, "model": "X 1"}));
        let mounts = "proc /proc proc rw 0 0\n/dev/sda1 / ext4 rw 0 0\n/dev/sda1 /again ext4 rw 0 0\n\
                      server:/x /srv nfs rw 0 0\n/dev/sdb /mnt/a\\040b xfs rw 0 0\n";
        let found: Vec<String> = places(mounts).into_iter().map(|(_, place, _)| place).collect();
        assert_eq!(found, ["/", "/mnt/a b"]);
        assert_eq!((used_percent(49, 100), used_percent(50, 100), used_percent(1, 0)), (45, 50, 0));
        assert_eq!(virtualisation("flags : a hypervisor", "QEMU", false), "kvm");
        assert_eq!(virtualisation("flags : a", "QEMU", false), "none");
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "(ID|MemTotal|processor|model name|/dev/a|[:= \n\"\\\\]|[a-z0-9]){0,40}") {
            drop((os(&text), cpu(&text), memory(&text), places(&text).len()));
        }
    }
}
