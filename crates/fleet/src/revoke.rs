//! Throwing out: what a key signs counts no more, and the broker cuts it off at once.
//!
//! Needs the fleet's keys, since what the broker goes by are the accounts' claims. First the broker, then what is
//! signed: nothing can be written behind the back of whoever revokes.

use bus::keys::{FleetKeys, Role};
use bus::{Bus, ConnectOptions, Credentials};
use message::PublicKey;

use crate::context::{Context, Home};
use crate::error::FleetError;

/// Between two pings of a link that lives for a moment.
const PING_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);

/// Makes every token void that `key` holds in `role`: the broker ends its connections within a moment and lets it in
/// no more, also after its restart.
///
/// # Errors
/// [`FleetError`] when the keys are not in the home, or the broker cannot be told. What the files say then comes into
/// force at the next start of this home's broker.
pub async fn cut_off(home: &Home, context: &Context, role: Role, key: &PublicKey) -> Result<(), FleetError> {
    let _lock = FleetKeys::lock(home.dir())?;
    let mut keys = FleetKeys::open(home.dir())?;
    let bus = system_bus(&keys, context).await?;
    let told = async {
        if let Some(known) = bus.claims_of(keys.account_of(role)).await? {
            keys.learn(role, &known)?;
        }
        let jwt = keys.revoke(role, key.as_str())?;
        bus.push_claims(&jwt).await?;
        Ok(())
    };
    let told = told.await;
    bus.close().await;
    told
}

/// A connection that may change accounts.
pub(crate) async fn system_bus(keys: &FleetKeys, context: &Context) -> Result<Bus, FleetError> {
    let creds = keys.system_user()?;
    let options = ConnectOptions {
        server: context.server.clone(),
        ca: context.ca.clone(),
        credentials: Credentials::parse(&creds.render(), "the system's credentials")?,
        name: "steward system".to_owned(),
        inbox_prefix: Some(creds.inbox_prefix()?),
        patient: false,
        ping_interval: PING_INTERVAL,
        api_prefix: bus::CORE_API,
    };
    Ok(Bus::connect(options).await?)
}
