//! The policy from the operator's side: read and written as TOML, signed, handed to the broker, never taken back to an older
//! version.

use std::path::Path;

use bus::kv::POLICY;
use bus::{BusError, clock};
use bytes::Bytes;
use message::audit::Act;
use message::policy::{POLICY_KEY, Rule, Rules, reach};
use message::{Policy, PublicKey, SealedDocument};
use nkeys::KeyPair;
use serde::Deserialize;
use toml::{Spanned, Value};

use crate::connection::{CONFLICTS_MAX, Fleet};
use crate::context::Home;
use crate::error::FleetError;
use crate::files::{self, Access};
use crate::nodes::near;
use crate::root::RootKey;

/// The largest file that is looked at.
const FILE_BYTES_MAX: usize = 1024 * 1024;
/// The conditions of a rule, in the order in which they are shown.
const KEYS: [&str; 11] =
    ["name", "roles", "operators", "nodes", "names", "methods", "domains", "argv", "users", "times", "approvals"];

/// A policy with its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPolicy {
    /// What it says.
    pub policy: Policy,
    /// As it was signed.
    pub sealed: SealedDocument,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    allow: Vec<Spanned<Rule>>,
    #[serde(default)]
    deny: Vec<Spanned<Rule>>,
}

/// Reads the rules that a person wrote.
///
/// # Errors
/// [`FleetError::Usage`] says what is wrong, and in which line.
pub fn parse(text: &str) -> Result<Rules, FleetError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(FleetError::usage(format!("the policy has {} bytes: that is no policy", text.len())));
    }
    let file: File = toml::from_str(text).map_err(|error| FleetError::usage(explain(&error.to_string())))?;
    let starts = |rules: &[Spanned<Rule>]| rules.iter().map(|rule| rule.span().start).collect::<Vec<_>>();
    let (allow_at, deny_at) = (starts(&file.allow), starts(&file.deny));
    let plain = |rules: Vec<Spanned<Rule>>| rules.into_iter().map(Spanned::into_inner).collect();
    let rules = Rules { allow: plain(file.allow), deny: plain(file.deny) };
    rules.check().map_err(|(denies, index, reason)| {
        let (kind, starts) = if denies { ("deny", &deny_at) } else { ("allow", &allow_at) };
        let start = starts.get(index).copied().unwrap_or(0);
        let line = text.get(..start).map_or(1, |before| before.matches('\n').count() + 1);
        FleetError::usage(format!("line {line}: [[{kind}]] {}: {reason}", index + 1))
    })?;
    Ok(rules)
}

/// Adds the nearest known key to the parser's complaint about an unknown one.
fn explain(error: &str) -> String {
    let error = error.trim_end();
    let unknown = error.split("unknown field `").nth(1).and_then(|rest| rest.split('`').next());
    let known = KEYS.into_iter().chain(["allow", "deny", "days", "from", "to", "offset"]);
    match unknown.and_then(|unknown| near(unknown, known).first().copied()) {
        Some(key) => format!("{error}\nDid you mean `{key}`?"),
        None => error.to_owned(),
    }
}

/// The rules as a person would write them.
pub fn render(rules: &Rules) -> String {
    let mut text = String::new();
    for (kind, rules) in [("allow", &rules.allow), ("deny", &rules.deny)] {
        for rule in rules {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&format!("[[{kind}]]\n"));
            // Texts, lists, numbers and one table: all of it is TOML.
            let Ok(Value::Table(table)) = Value::try_from(rule) else { continue };
            for key in KEYS {
                if let Some(value) = table.get(key) {
                    text.push_str(&format!("{key} = {value}\n"));
                }
            }
        }
    }
    text
}

/// A line of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// In both.
    Same(&'a str),
    /// In the new one only.
    New(&'a str),
    /// In the old one only.
    Old(&'a str),
}

/// The lines that make `new` of `old`.
pub fn difference<'a>(old: &'a str, new: &'a str) -> Vec<Line<'a>> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // What both begin and end with is no part of the question, and the table stays small.
    let head = old.iter().zip(&new).take_while(|(one, other)| one == other).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(one, other)| one == other).count();
    let (a, b) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    let mut longest = vec![vec![0_u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i][j] =
                if a[i] == b[j] { longest[i + 1][j + 1] + 1 } else { longest[i + 1][j].max(longest[i][j + 1]) };
        }
    }
    let mut lines: Vec<Line<'a>> = old[..head].iter().map(|line| Line::Same(line)).collect();
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push(Line::Same(a[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || longest[i + 1][j] >= longest[i][j + 1]) {
            lines.push(Line::Old(a[i]));
            i += 1;
        } else {
            lines.push(Line::New(b[j]));
            j += 1;
        }
    }
    lines.extend(old[old.len() - tail..].iter().map(|line| Line::Same(line)));
    lines
}

/// Seals a policy.
pub(crate) fn seal(policy: &Policy, pair: &KeyPair) -> Result<SignedPolicy, FleetError> {
    let text = policy.to_text().map_err(|error| FleetError::usage(error.to_string()))?;
    let sealed = SealedDocument::new(text, pair).map_err(|error| FleetError::signing(&error))?;
    Ok(SignedPolicy { policy: policy.clone(), sealed })
}

/// Keeps a policy in the home.
pub(crate) fn save(home: &Home, signed: &SignedPolicy) -> Result<(), FleetError> {
    let text = serde_json::to_string_pretty(&signed.sealed).map_err(|error| FleetError::signing(&error))?;
    files::write(&home.policy_file(), &format!("{text}\n"), Access::Plain)
}

impl Fleet {
    /// The policy in force: the newer of those that the home and the broker have. `None` in a fleet without one.
    ///
    /// # Errors
    /// [`FleetError`] when the broker cannot be asked, or what it has is not to be believed and the home has none.
    pub async fn policy(&self) -> Result<Option<SignedPolicy>, FleetError> {
        let ours = self.policy_at_home()?;
        let theirs = match self.policy_at_broker().await? {
            Some((_, Ok(theirs))) => Some(theirs),
            Some((_, Err(error))) if ours.is_none() => return Err(error),
            _ => None,
        };
        Ok(match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours.policy.version > theirs.policy.version => Some(ours),
            (ours, theirs) => theirs.or(ours),
        })
    }

    /// Hands the broker the policy that stands in the home, unless it has one as new. Tells whether it was handed over.
    ///
    /// # Errors
    /// [`FleetError`] when the file cannot be used or the broker does not take it.
    pub async fn publish_policy(&self) -> Result<bool, FleetError> {
        let Some(ours) = self.policy_at_home()? else { return Ok(false) };
        for _ in 0..CONFLICTS_MAX {
            let revision = match self.policy_at_broker().await? {
                None => 0,
                Some((_, Ok(theirs))) if theirs.policy.version >= ours.policy.version => {
                    // Somebody has applied it elsewhere: a store that is made anew shall get it from here.
                    if theirs.policy.version > ours.policy.version {
                        save(&self.context().home(), &theirs)?;
                    }
                    return Ok(false);
                }
                Some((revision, _)) => revision,
            };
            if self.put_policy(&ours, revision).await? {
                return Ok(true);
            }
        }
        Err(BusError::Conflict { what: "the policy".into() }.into())
    }

    /// Has the root sign the policy in force anew, word for word, if one of these keys did, which are about to count no more.
    ///
    /// # Errors
    /// [`FleetError`] when it cannot be read or stored.
    pub(crate) async fn sign_policy_anew(&self, root: &RootKey, keys: &[PublicKey]) -> Result<(), FleetError> {
        for _ in 0..CONFLICTS_MAX {
            let Some((revision, Ok(signed))) = self.policy_at_broker().await? else { return Ok(()) };
            if !keys.contains(&signed.sealed.seal.key) {
                return Ok(());
            }
            let signed = seal(&signed.policy, root.pair())?;
            if self.put_policy(&signed, revision).await? {
                return save(&self.context().home(), &signed);
            }
        }
        Err(BusError::Conflict { what: "the policy".into() }.into())
    }

    /// The policy that the broker has, if it is believed now; else the one of this home.
    pub(crate) async fn policy_held(&self) -> Result<Option<SignedPolicy>, FleetError> {
        match self.policy_at_broker().await? {
            Some((_, Ok(signed))) => Ok(Some(signed)),
            _ => self.policy_at_home(),
        }
    }

    /// Has the new root sign the policy that was in force under the one before it, word for word, unless the broker's is
    /// believed as it is.
    ///
    /// # Errors
    /// [`FleetError`] when it cannot be read or stored.
    pub(crate) async fn sign_policy_of_earlier_root(
        &self,
        root: &RootKey,
        held: Option<SignedPolicy>,
    ) -> Result<(), FleetError> {
        let Some(held) = held else { return Ok(()) };
        let signed = seal(&held.policy, root.pair())?;
        for _ in 0..CONFLICTS_MAX {
            let revision = match self.policy_at_broker().await? {
                Some((_, Ok(_))) => return Ok(()),
                Some((revision, Err(_))) => revision,
                None => 0,
            };
            if self.put_policy(&signed, revision).await? {
                return save(&self.context().home(), &signed);
            }
        }
        Err(BusError::Conflict { what: "the policy".into() }.into())
    }

    /// Signs `rules` as the version after `base`, which is what was looked at, and after `above`, which nodes may have seen, and
    /// puts them in force. The root signs, if its key is in the home or in the file `root`; else this identity, if the list of
    /// operators names it for that.
    ///
    /// # Errors
    /// [`FleetError::Usage`] when somebody else has changed the policy since `base`; [`FleetError::File`] when nobody is here
    /// who may sign.
    pub async fn apply_policy(
        &self,
        rules: &Rules,
        (base, above): (u64, u64),
        root: Option<&Path>,
    ) -> Result<Policy, FleetError> {
        let raced = |found: u64| {
            FleetError::usage(format!(
                "somebody else has changed the policy meanwhile: what was compared is version {base}, in force is version \
                 {found}. Run it again to see what it would change now"
            ))
        };
        let revision = match self.policy_at_broker().await? {
            Some((_, Ok(theirs))) if theirs.policy.version > base => return Err(raced(theirs.policy.version)),
            Some((revision, _)) => revision,
            None => 0,
        };
        let next = base
            .max(above)
            .checked_add(1)
            .ok_or_else(|| FleetError::usage("no version comes after the one in force"))?;
        let policy = Policy::new(next, self.context().root.clone(), clock::now(), rules.clone());
        let own = self.trust().policy_keys.contains(&self.key());
        let signed = match RootKey::find(&self.context().home(), root, &self.root()) {
            Ok(root) => seal(&policy, root.pair())?,
            Err(_) if own && root.is_none() => seal(&policy, self.credentials().pair())?,
            Err(error) => return Err(error),
        };
        let sealed = message::audit::sha256(signed.sealed.document.as_bytes());
        let change = Act::change("policy apply", format!("version {next}")).of_key(&signed.sealed.seal.key);
        self.record(change.noting(format!("sha256 {sealed}"))).await?;
        if !self.put_policy(&signed, revision).await? {
            return Err(raced(next));
        }
        save(&self.context().home(), &signed)?;
        Ok(policy)
    }

    /// Who would gain and who would lose what if `rules` took the place of `before`.
    ///
    /// # Errors
    /// [`FleetError`] when the fleet's nodes cannot be read.
    pub async fn policy_changes(
        &self,
        before: Option<&Rules>,
        rules: &Rules,
    ) -> Result<Vec<reach::Change>, FleetError> {
        let nodes = self.nodes().await?.nodes;
        let nodes: Vec<_> = nodes.into_iter().map(|node| (node.record.name, node.record.labels)).collect();
        Ok(reach::changes(before, rules, &self.trust().operators, &nodes))
    }

    async fn put_policy(&self, signed: &SignedPolicy, revision: u64) -> Result<bool, FleetError> {
        let text = serde_json::to_string(&signed.sealed).map_err(|error| FleetError::signing(&error))?;
        match self.bus().kv_put_if(POLICY, POLICY_KEY, Bytes::from(text), None, revision).await {
            Ok(_) => Ok(true),
            Err(BusError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// What this home has put in force before; it may be signed by a key that is no delegate any more.
    fn policy_at_home(&self) -> Result<Option<SignedPolicy>, FleetError> {
        let path = self.context().home().policy_file();
        let Some(text) = files::read(&path)? else { return Ok(None) };
        let wrong = |reason: String| FleetError::File { path: path.clone(), reason };
        let sealed: SealedDocument = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let policy = Policy::open_kept(&sealed, &self.context().root).map_err(|error| wrong(error.to_string()))?;
        Ok(Some(SignedPolicy { policy, sealed }))
    }

    /// What the broker has, with its revision.
    async fn policy_at_broker(&self) -> Result<Option<(u64, Result<SignedPolicy, FleetError>)>, FleetError> {
        let Some(message) = self.bus().kv_get(POLICY, POLICY_KEY).await? else { return Ok(None) };
        let wrong = |reason: String| FleetError::Policy { reason };
        let opened = serde_json::from_slice::<SealedDocument>(&message.payload)
            .map_err(|error| wrong(error.to_string()))
            .and_then(|sealed| {
                let policy = Policy::open(&sealed, &self.roots(), &self.trust());
                Ok(SignedPolicy { policy: policy.map_err(|error| wrong(error.to_string()))?, sealed })
            });
        Ok(Some((message.sequence, opened)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = r#"
[[allow]]
name = "ops restart services in oslo"
roles = ["ops"]
nodes = "site=oslo,tier!=prod"
names = ["ship*"]
methods = ["shellcommand"]
domains = ["operatingsystem"]
argv = [["systemctl", "restart", "*"]]
users = ["steward"]
times = { days = "mon-fri", from = "06:00", to = "20:00" }
approvals = 2

[[deny]]
name = "nobody reboots"
operators = ["*"]
argv = [["reboot", "**"]]
"#;

    #[test]
    fn what_is_written_is_read_back() {
        let rules = parse(EXAMPLE).unwrap();
        assert_eq!((rules.allow.len(), rules.deny.len()), (1, 1));
        assert_eq!(parse(&render(&rules)).unwrap(), rules, "{}", render(&rules));
    }

    fn wrong(old: &str, new: &str) -> String {
        assert!(EXAMPLE.contains(old), "{old}");
        parse(&EXAMPLE.replacen(old, new, 1)).unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_file_is_told_with_its_line() {
        let error = wrong("methods = ", "methds = ");
        assert!(error.contains("line 7") && error.contains("Did you mean `methods`?"), "{error}");
        let error = wrong("site=oslo,", "site oslo,");
        assert!(error.contains("line 5") && error.contains('^'), "{error}");
        let error = wrong("mon-fri", "mon-fry");
        assert!(error.contains("line 11") && error.contains("fry"), "{error}");
        let error = wrong("roles = [\"ops\"]\n", "");
        assert!(error.contains("line 2") && error.contains("who"), "{error}");
        let error = wrong("nobody reboots", "ops restart services in oslo");
        assert!(error.contains("line 14") && error.contains("[[deny]] 1"), "{error}");
        assert!(wrong("[\"steward\"]", "[]").contains("line 10"));
        assert!(wrong("approvals = 2", "approvals = 0").contains("1 to 16"));
    }

    #[test]
    fn a_difference_makes_one_of_the_other() {
        let (old, new) = ("a\nb\nc\nd", "a\nx\nc\ny\nd");
        use Line::{New, Old, Same};
        assert_eq!(difference(old, new), [Same("a"), Old("b"), New("x"), Same("c"), New("y"), Same("d")]);
        assert_eq!(difference("", "a"), [New("a")]);
    }
}
