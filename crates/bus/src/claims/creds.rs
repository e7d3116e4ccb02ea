//! The `.creds` file: what a NATS client needs to connect, in the form that all of them read.
//!
//! In flows text, out flow a user's token and key, or the other way round. The text is a secret: it must go nowhere
//! but to the one it is for.

use nkeys::{KeyPair, KeyPairType};

use super::{ClaimsError, Token, User, read};

/// The two halves of a `.creds` file: the token that says who one is, and the seed that proves it.
#[derive(Clone)]
pub struct Creds {
    jwt: String,
    seed: String,
}

impl std::fmt::Debug for Creds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Creds").field("jwt", &self.jwt).finish_non_exhaustive()
    }
}

impl Creds {
    /// Joins a user's token and key.
    ///
    /// # Errors
    /// When `user` has no private half.
    pub fn new(jwt: String, user: &KeyPair) -> Result<Self, ClaimsError> {
        let seed = user.seed().map_err(|reason| ClaimsError::Sign { key: user.public_key(), reason })?;
        Ok(Self { jwt, seed })
    }

    /// Joins the token in the text of a `.creds` file, which need not hold a seed, with a seed that is kept elsewhere.
    ///
    /// # Errors
    /// When there is no token, the seed is none, or they do not belong together.
    pub fn with_seed(text: &str, seed: &str) -> Result<Self, ClaimsError> {
        let jwt = block(text, "NATS USER JWT").ok_or(ClaimsError::Creds("it has no user JWT block"))?;
        Self::parse(&Self { jwt, seed: seed.trim().to_owned() }.render())
    }

    /// The text of a `.creds` file without its secret: the token alone.
    #[must_use]
    pub fn render_public(&self) -> String {
        format!("-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n", self.jwt)
    }

    /// Reads the text of a `.creds` file.
    ///
    /// # Errors
    /// When a block is missing or does not hold what it should.
    pub fn parse(text: &str) -> Result<Self, ClaimsError> {
        let jwt = block(text, "NATS USER JWT").ok_or(ClaimsError::Creds("it has no user JWT block"))?;
        let seed = block(text, "USER NKEY SEED").ok_or(ClaimsError::Creds("it has no user nkey seed block"))?;
        let key = KeyPair::from_seed(&seed).map_err(|_| ClaimsError::Creds("its seed is not an nkey seed"))?;
        if !matches!(key.key_pair_type(), KeyPairType::User) {
            return Err(ClaimsError::Creds("its seed is not that of a user (SU…)"));
        }
        let creds = Self { jwt, seed };
        if creds.token()?.sub != key.public_key() {
            return Err(ClaimsError::Creds("its seed belongs to another user than its JWT"));
        }
        Ok(creds)
    }

    /// The text of a `.creds` file. It is a secret.
    #[must_use]
    pub fn render(&self) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\
             NKEY Seed printed below can be used to sign and prove identity.\n\
             NKEYs are sensitive and should be treated as secrets.\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n\n\
             *************************************************************\n",
            self.jwt, self.seed
        )
    }

    /// The token.
    #[must_use]
    pub fn jwt(&self) -> &str {
        &self.jwt
    }

    /// What the token says.
    ///
    /// # Errors
    /// When it is not a user token.
    pub fn token(&self) -> Result<Token<User>, ClaimsError> {
        read(&self.jwt)
    }

    /// The key that proves it.
    ///
    /// # Errors
    /// When the seed is not one.
    pub fn key(&self) -> Result<KeyPair, ClaimsError> {
        KeyPair::from_seed(&self.seed).map_err(|_| ClaimsError::Creds("its seed is not an nkey seed"))
    }
}

/// The text between the dashed lines that begin and end a block, whatever the number of dashes.
fn block(text: &str, label: &str) -> Option<String> {
    let marks = |line: &&str, word: &str| line.starts_with("---") && line.contains(&format!("{word} {label}"));
    text.lines()
        .map(str::trim)
        .skip_while(|line| !marks(line, "BEGIN"))
        .skip(1)
        .take_while(|line| !marks(line, "END"))
        .find(|line| !line.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::sign;

    fn token() -> (KeyPair, String) {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let jwt = sign(&account, &user.public_key(), "ship1", User::scoped("A1".into(), vec![])).unwrap();
        (user, jwt)
    }

    #[test]
    fn creds_survive_the_file() {
        let (user, jwt) = token();
        let creds = Creds::new(jwt.clone(), &user).unwrap();
        let parsed = Creds::parse(&creds.render()).unwrap();
        assert_eq!((parsed.jwt(), parsed.key().unwrap().public_key()), (jwt.as_str(), user.public_key()));
        assert!(!format!("{creds:?}").contains(&user.seed().unwrap()));
    }

    #[test]
    fn creds_with_a_foreign_seed_are_refused() {
        let (_, jwt) = token();
        let creds = Creds::new(jwt, &KeyPair::new_user()).unwrap();
        assert!(matches!(Creds::parse(&creds.render()), Err(ClaimsError::Creds(_))));
        assert!(matches!(Creds::parse("hello"), Err(ClaimsError::Creds(_))));
    }
}
