//! The door that an enrolment token opens: an account of its own at the broker, in which one can knock and nothing else.
//!
//! Each token has its own account, so that the broker itself ends it: the account's claims expire with the token, bound its
//! connections, and lose their signing key when the token is revoked. The token carries that signing key, and each unit
//! signs a user for its own key with it: so every right can be tied to that key (`{{subject()}}`), and units that came by
//! the same token can neither hear nor overwrite one another. No private key of a fleet or a node is ever made or seen here.

use nkeys::KeyPair;

use super::{FleetKeys, KeysError};
use crate::claims::{self, Account, AccountLimits, Creds, Import, Permission, Sharing, SigningKey, Template, User};

/// Prefix under which a unit that knocks sees the one call of CORE's that it may make (`$JS.API` there).
pub const KNOCK_API: &str = "knock.API";

/// Where an answer is read.
const READ: &str = "DIRECT.GET.KV_ADMISSIONS.$KV.ADMISSIONS";
/// The answers that a unit may read at its own key.
const ANSWERS: [&str; 2] = ["accepted", "rejected"];
/// How many subjects a unit may listen to at once.
const SUBSCRIPTIONS_MAX: i64 = 8;
/// The longest message that a unit may send: a knock with its headers.
pub const KNOCK_MESSAGE_MAX: i32 = 4096;
/// Connections beyond those of the units that the token is for: some knock that are not meant, some return.
const CONNECTIONS_SPARE: u32 = 32;

/// The way from a token's account into CORE, as CORE offers it: the subject, and whether it is a service.
pub(super) fn offered() -> Vec<(String, Sharing)> {
    let mut all = vec![("knock.*.*".to_owned(), Sharing::Service)];
    for answer in ANSWERS {
        all.push((format!("$JS.API.{READ}.{answer}.*"), Sharing::Service));
        all.push((format!("core.KV.ADMISSIONS.{answer}.*"), Sharing::Stream));
    }
    all
}

fn account(core: &str, id: &str, signer: &str, uses: u32) -> Account {
    let imports = offered().into_iter().map(|(subject, sharing)| {
        let local_subject = subject.strip_prefix("$JS.API.").map(|call| format!("{KNOCK_API}.{call}"));
        // Of knocks only those of this token, whatever its holder says.
        let subject = if subject == "knock.*.*" { format!("knock.{id}.*") } else { subject };
        Import {
            name: subject.clone(),
            subject,
            account: core.to_owned(),
            local_subject: local_subject.unwrap_or_default(),
            sharing,
        }
    });
    let publish = std::iter::once(format!("knock.{id}.{{{{subject()}}}}"))
        .chain(ANSWERS.map(|answer| format!("{KNOCK_API}.{READ}.{answer}.{{{{subject()}}}}")));
    let subscribe = std::iter::once("_INBOX.{{subject()}}.>".to_owned())
        .chain(ANSWERS.map(|answer| format!("core.KV.ADMISSIONS.{answer}.{{{{subject()}}}}")));
    let only = |allow| Permission { allow, deny: Vec::new() };
    let template = Template::new(only(publish.collect()), only(subscribe.collect()))
        .within(SUBSCRIPTIONS_MAX, i64::from(KNOCK_MESSAGE_MAX));
    let mut limits = AccountLimits::unlimited(false);
    limits.conn = i64::from(uses.saturating_mul(2).saturating_add(CONNECTIONS_SPARE));
    (limits.leaf, limits.exports) = (0, 0);
    let mut account = Account::new(limits);
    account.imports = imports.collect();
    account.signing_keys = vec![SigningKey::scoped(signer.to_owned(), "knock", template)];
    account
}

impl FleetKeys {
    /// The claims of the account that the token `id` opens, for users signed by `signer`, until `expires` (seconds of Unix
    /// time). They have to be pushed to the broker.
    ///
    /// # Errors
    /// When the fleet's key cannot sign.
    pub fn open_door(
        &self,
        account_key: &str,
        id: &str,
        signer: &str,
        uses: u32,
        expires: i64,
    ) -> Result<String, KeysError> {
        let account = account(&self.core.token.sub, id, signer, uses);
        let now = claims::unix_now();
        Ok(claims::sign_until(&self.signing, account_key, &door_name(id), account, now, Some(expires))?)
    }

    /// The claims of the same account when nobody may come in any more. `since` is when it was opened, in seconds of Unix time.
    ///
    /// # Errors
    /// As [`Self::open_door`].
    pub fn shut_door(&self, account_key: &str, id: &str, since: i64) -> Result<String, KeysError> {
        let mut limits = AccountLimits::unlimited(false);
        (limits.conn, limits.leaf, limits.imports, limits.exports) = (0, 0, 0, 0);
        let mut account = Account::new(limits);
        // Of two tokens the broker keeps the later one, and its clock counts seconds.
        let now = claims::unix_now().max(since.saturating_add(1));
        account.revocations.insert("*".to_owned(), i64::MAX);
        Ok(claims::sign_at(&self.signing, account_key, &door_name(id), account, now)?)
    }
}

fn door_name(id: &str) -> String {
    format!("KNOCK {id}")
}

/// What a unit with the key `node` connects with to knock: a user that it signs itself, with the key of its token.
///
/// # Errors
/// When one of the keys has no private half.
pub fn knocker(signer: &KeyPair, account: &str, node: &KeyPair) -> Result<Creds, KeysError> {
    let key = node.public_key();
    let user = User::scoped(account.to_owned(), Vec::new());
    Ok(Creds::new(claims::sign(signer, &key, "knock", user)?, node)?)
}

/// Where the answers to the requests of a unit that knocks arrive.
#[must_use]
pub fn knocker_inbox(key: &str) -> String {
    format!("_INBOX.{key}")
}
