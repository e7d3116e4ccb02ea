//! Who may say what to whom: the rights of every role, and the doors between the two accounts.
//!
//! Pure tables, turned into the claims that the broker enforces. CORE holds the streams, operators, stations; EDGE
//! holds the nodes. NATS does not check permissions on reply subjects: whoever shares an account with a stream can
//! have the broker's answer to a harmless request stored there. So nodes live apart, and only what stands here
//! crosses. No right may be given here that a signature does not back: a permission is not proof of a sender.

use crate::claims::{
    Account, AccountLimits, Export, Import, Permission, ResponseType, Sharing, SigningKey, Template, WeightedMapping,
};
use crate::keys::door;

/// Kinds of messages of which subjects have four tokens, `<to>.<kind>.<…>.<…>`.
const KINDS: [&str; 5] = ["command", "event", "reply", "output", "audit"];

/// Prefix under which EDGE sees the JetStream calls of CORE that a node needs (`$JS.API` there).
pub const EDGE_API_PREFIX: &str = "core.API";

/// Streams of which a node reads the last message of a subject by direct get, and which subjects.
const READABLE: [(&str, &str); 9] = [
    ("KV_NODES", "$KV.NODES.{{name()}}"),
    ("KV_PRESENCE", "$KV.PRESENCE.{{name()}}"),
    ("KV_FACTS", "$KV.FACTS.{{name()}}"),
    ("KV_POLICY", "$KV.POLICY.*"),
    ("KV_META", "$KV.META.epoch"),
    // Its new token, when the key that signs those of its role is another one.
    ("KV_USERS", "$KV.USERS.{{subject()}}"),
    // What it answered before: a node whose journal was lost or set back does not run an order again.
    ("REPLIES", "*.reply.*.{{name()}}"),
    // The end of its own chain in the audit log, to go on behind it.
    ("AUDIT", "{{name()}}.audit.{{subject()}}.*"),
    // Since when the broker has listened: a silence before that proves nothing.
    ("BOOT", "steward.boot"),
];

/// Who has taken his new token says so.
const RECEIPT: &str = "$KV.USERS.taken.{{subject()}}";

/// What a node may publish (in EDGE). Checked after mapping, hence `in.…`.
const NODE_PUBLISHES: [&str; 14] = [
    "in.*.event.*.*",
    "in.*.reply.*.{{name()}}",
    "in.*.output.*.{{name()}}",
    "$KV.PRESENCE.{{name()}}",
    "$KV.FACTS.{{name()}}",
    "$KV.HISTORY.{{name()}}",
    RECEIPT,
    "core.API.CONSUMER.CREATE.COMMANDS.{{name()}}.{{name()}}.command.>",
    "core.API.CONSUMER.MSG.NEXT.COMMANDS.{{name()}}",
    "core.API.CONSUMER.DELETE.COMMANDS.{{name()}}",
    // What it is told, where it has receivers.
    "core.API.CONSUMER.CREATE.EVENTS.{{name()}}.{{name()}}.event.>",
    "core.API.CONSUMER.MSG.NEXT.EVENTS.{{name()}}",
    "core.API.CONSUMER.DELETE.EVENTS.{{name()}}",
    "in.{{name()}}.audit.{{subject()}}.*",
];

/// To what a node may subscribe (in EDGE): its orders, its answers, and what was stored in buckets. The last are
/// hints that a record changed, to be read then by direct get.
const NODE_SUBSCRIBES: [&str; 5] = [
    "{{name()}}.command.*.*",
    "_INBOX.{{name()}}.>",
    "core.KV.NODES.{{name()}}",
    "core.KV.POLICY.*",
    "core.KV.USERS.{{subject()}}",
];

/// What everyone in CORE who reads needs: look at streams, get messages, have consumers.
const READS: [&str; 8] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.DIRECT.GET.>",
    "$JS.API.CONSUMER.>",
    "$JS.ACK.>",
];

/// Whoever finds the broker's boot mark gone puts it back.
const BOOT_MARK: [&str; 2] = ["$JS.API.STREAM.CREATE.BOOT", "steward.boot"];

/// What a person who orders may publish, besides [`READS`] and [`BOOT_MARK`].
const OPERATOR_PUBLISHES: [&str; 12] = [
    "in.*.command.*.*",
    "in.*.event.*.*",
    "$KV.NODES.*",
    "$KV.JOBS.>",
    "$KV.POLICY.*",
    // Answering those who knock, and taking away what is answered.
    "$KV.ADMISSIONS.*.*",
    "$JS.API.STREAM.PURGE.KNOCKS",
    "$KV.USERS.*",
    RECEIPT,
    "$JS.FC.>",
    // Name and key are those of his token: nobody writes in another's name, or what another key should have signed.
    "in.{{name()}}.audit.{{subject()}}.operator",
    // Who is there? (`nats micro ls`)
    "$SRV.>",
];

/// What a station may publish, besides [`READS`] and [`BOOT_MARK`]: as a node among others it reports and answers,
/// as a station it keeps the state of jobs and its lease. It neither signs orders nor admits nodes nor makes policy.
const STATION_PUBLISHES: [&str; 9] = [
    "in.*.event.*.*",
    "in.*.reply.*.{{name()}}",
    "in.*.output.*.{{name()}}",
    "$KV.PRESENCE.{{name()}}",
    "$KV.JOBS.>",
    RECEIPT,
    "$KV.META.lease.*",
    "$JS.FC.>",
    // To be found by plain clients. Not `allow_responses`: with that, who asks could have the station write wherever he names.
    PLAIN_INBOX,
];

/// What a station hears besides [`CORE_SUBSCRIBES`]: who looks for services.
const STATION_SUBSCRIBES: [&str; 1] = ["$SRV.>"];

/// Whether stations may publish orders that an operator has signed, to finish a fan-out that broke off. It gives them
/// no say in what is ordered: a node verifies the operator's signature over the whole order, runs one order once, and
/// discards what a station might make up (and a station that floods is no worse than one that floods events).
pub const STATION_MAY_FAN_OUT: bool = true;

/// What a fan-out takes.
const FAN_OUT: [&str; 1] = ["in.*.command.*.*"];

/// To what operators and stations subscribe. Wide enough for `nats sub 'ship2.command.>'`.
///
/// Nobody may subscribe to what a stream or bucket stores, `in.…` and `$KV.…`: a node chooses where its catch-up
/// consumer delivers, and the broker delivers wherever somebody listens to exactly that subject. One subscription to
/// `$KV.NODES.ship2`, and any node could overwrite that record (measured). Buckets are heard on `core.KV.…`.
const CORE_SUBSCRIBES: [&str; 8] = [
    "*.command.>",
    "*.event.>",
    "*.reply.>",
    "*.output.>",
    "*.audit.>",
    "core.KV.>",
    "$JS.EVENT.>",
    "_INBOX_{{name()}}.>",
];

/// The inbox of plain NATS clients; an operator's credentials must work with them.
const PLAIN_INBOX: &str = "_INBOX.>";

/// What sets up streams and buckets may do: all of JetStream, and the store's epoch.
const PROVISIONER_PUBLISHES: [&str; 3] = ["$JS.API.>", "$KV.META.*", "steward.boot"];

/// Who a set of credentials is for. Written into the token as a tag, so that a client knows its inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A person, or a program in their name, that orders. In CORE.
    Operator,
    /// A management station. In CORE.
    Station,
    /// Sets up streams and buckets. In CORE.
    Provisioner,
    /// An edge unit. In EDGE.
    Node,
    /// Pushes account claims and watches the broker. In SYS.
    System,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Operator, Self::Station, Self::Provisioner, Self::Node, Self::System];

    /// The role's name in tokens and file names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Station => "station",
            Self::Provisioner => "provisioner",
            Self::Node => "node",
            Self::System => "system",
        }
    }

    /// The role of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }

    /// Where the answers to requests of `name` arrive. Only a node's lies below `_INBOX`: in CORE, operators may
    /// read all of `_INBOX.>` for the sake of plain clients, so what matters goes elsewhere.
    #[must_use]
    pub fn inbox_prefix(self, name: &str) -> String {
        match self {
            Self::Node => format!("_INBOX.{name}"),
            _ => format!("_INBOX_{name}"),
        }
    }

    fn template(self) -> Template {
        let (publish, subscribe) = match self {
            Self::Operator => {
                (list(&[&READS, &BOOT_MARK, &OPERATOR_PUBLISHES]), list(&[&CORE_SUBSCRIBES, &[PLAIN_INBOX]]))
            }
            Self::Station => {
                let fan_out: &[&str] = if STATION_MAY_FAN_OUT { &FAN_OUT } else { &[] };
                (
                    list(&[&READS, &BOOT_MARK, &STATION_PUBLISHES, fan_out]),
                    list(&[&CORE_SUBSCRIBES, &STATION_SUBSCRIBES]),
                )
            }
            Self::Provisioner => (list(&[&PROVISIONER_PUBLISHES]), list(&[&["_INBOX_{{name()}}.>"]])),
            Self::Node => (node_publishes(), list(&[&NODE_SUBSCRIBES])),
            Self::System => (list(&[&["$SYS.REQ.>"]]), list(&[&["$SYS.>", "_INBOX_{{name()}}.>"]])),
        };
        let only = |allow| Permission { allow, deny: Vec::new() };
        Template::new(only(publish), only(subscribe))
    }

    /// The signing key `key` with the rights of this role.
    pub(super) fn scope(self, key: String) -> SigningKey {
        SigningKey::scoped(key, self.as_str(), self.template())
    }
}

fn node_publishes() -> Vec<String> {
    let reads = READABLE.iter().map(|(stream, keys)| format!("{EDGE_API_PREFIX}.DIRECT.GET.{stream}.{keys}"));
    NODE_PUBLISHES.iter().map(|subject| (*subject).to_owned()).chain(reads).collect()
}

fn list(parts: &[&[&str]]) -> Vec<String> {
    parts.iter().flat_map(|part| part.iter()).map(|subject| (*subject).to_owned()).collect()
}

/// One way through the wall between CORE and EDGE.
struct Door {
    core: String,
    edge: String,
    sharing: Sharing,
    response: Option<ResponseType>,
}

impl Door {
    fn service(core: impl Into<String>, edge: impl Into<String>) -> Self {
        let response = Some(ResponseType::Singleton);
        Self { core: core.into(), edge: edge.into(), sharing: Sharing::Service, response }
    }

    fn api(call: &str) -> Self {
        Self::service(format!("$JS.API.{call}"), format!("{EDGE_API_PREFIX}.{call}"))
    }

    fn with_many_answers(self) -> Self {
        Self { response: Some(ResponseType::Stream), ..self }
    }

    fn stream(subject: &str) -> Self {
        Self { core: subject.to_owned(), edge: subject.to_owned(), sharing: Sharing::Stream, response: None }
    }
}

fn doors() -> Vec<Door> {
    let mut doors: Vec<Door> = ["event", "reply", "output", "audit"]
        .into_iter()
        .map(|kind| format!("in.*.{kind}.*.*"))
        .map(|subject| Door::service(subject.clone(), subject))
        .collect();
    doors.extend(
        ["$KV.PRESENCE.*", "$KV.FACTS.*", "$KV.HISTORY.*", "$KV.USERS.taken.*"]
            .map(|subject| Door::service(subject, subject)),
    );
    for stream in ["COMMANDS", "EVENTS"] {
        doors.push(Door::api(&format!("CONSUMER.CREATE.{stream}.>")));
        doors.push(Door::api(&format!("CONSUMER.MSG.NEXT.{stream}.*")).with_many_answers());
        doors.push(Door::api(&format!("CONSUMER.DELETE.{stream}.*")));
    }
    doors.extend(READABLE.iter().map(|(stream, _)| Door::api(&format!("DIRECT.GET.{stream}.>"))));
    doors.extend(["*.command.*.*", "core.KV.NODES.*", "core.KV.POLICY.*", "core.KV.USERS.*"].map(Door::stream));
    doors
}

/// CORE: streams, operators, stations.
pub(super) fn core(signing_keys: Vec<SigningKey>) -> Account {
    let for_nodes = doors().into_iter().map(|door| (door.core, door.sharing, door.response));
    let for_knocks = door::offered().into_iter().map(|(subject, sharing)| {
        let response = matches!(sharing, Sharing::Service).then_some(ResponseType::Singleton);
        (subject, sharing, response)
    });
    let exports = for_nodes
        .chain(for_knocks)
        .map(|(subject, sharing, response_type)| Export { name: subject.clone(), subject, sharing, response_type })
        .collect();
    let mappings = KINDS.into_iter().map(into_stream).collect();
    let mut account = Account::new(AccountLimits::unlimited(true));
    (account.exports, account.mappings, account.signing_keys) = (exports, mappings, signing_keys);
    account
}

/// EDGE: the nodes. It stores nothing of its own.
pub(super) fn edge(core: &str, signing_keys: Vec<SigningKey>) -> Account {
    let imports = doors()
        .into_iter()
        .map(|door| Import {
            name: door.core.clone(),
            local_subject: if door.edge == door.core { String::new() } else { door.edge },
            subject: door.core,
            account: core.to_owned(),
            sharing: door.sharing,
        })
        .collect();
    // Commands are not mapped here: nobody in EDGE may send one.
    let mappings = KINDS.into_iter().filter(|kind| *kind != "command").map(into_stream).collect();
    let mut account = Account::new(AccountLimits::unlimited(false));
    (account.imports, account.mappings, account.signing_keys) = (imports, mappings, signing_keys);
    account
}

/// SYS: the broker's own account.
pub(super) fn sys(signing_keys: Vec<SigningKey>) -> Account {
    let mut account = Account::new(AccountLimits::unlimited(false));
    account.signing_keys = signing_keys;
    account
}

/// `*.command.*.*` → `in.*.command.*.*`: a stream cannot listen on the former, as its first wildcard meets `$JS`.
fn into_stream(kind: &str) -> (String, Vec<WeightedMapping>) {
    let subject = format!("in.{{{{wildcard(1)}}}}.{kind}.{{{{wildcard(2)}}}}.{{{{wildcard(3)}}}}");
    (format!("*.{kind}.*.*"), vec![WeightedMapping { subject, weight: 100 }])
}
