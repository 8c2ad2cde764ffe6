//! The fake EC2 as a state machine: a call at a moment changes it and has an answer. No clock, no
//! network and no chance but the seed.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::action::Action;
use super::error::ApiError;
use super::fault::{Effect, Fault, Faults, Point};
use super::ids::Ids;
use super::instance::{CapacityType, Instance, SpotNotice, State};
use super::params::Params;
use super::price::Change;
use super::region::{Pool, Region, Scope};
use super::settings::{ImageSetting, Settings};
use super::xml::Xml;

/// "A request must reach AWS within five minutes of the time stamp in the request" ("Elements of an AWS
/// API request signature", IAM User Guide).
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// How a region fails as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outage {
    /// Every call gets 503 `Unavailable`.
    Unavailable,
    /// Every connection is closed without an answer.
    Drop,
    /// No call is answered until the outage ends.
    Hang,
}

/// How often an action was called in a region, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// All that arrived, also those a fault ended.
    pub count: u64,
    /// Error answers by code.
    pub errors: BTreeMap<String, u64>,
}

/// Who asks, as the signature of the request says (it is not verified: a wrong secret is
/// [`Ec2::set_credentials`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Access key id.
    pub access_key: String,
    /// Region of the credential scope.
    pub region: String,
    /// `X-Amz-Date`.
    pub signed_at: Option<Timestamp>,
}

/// The whole of the fake EC2: accounts, regions, markets, and what is to go wrong.
#[derive(Debug)]
pub struct Ec2 {
    settings: Settings,
    ids: Ids,
    /// By (account, region), made at the first call.
    regions: BTreeMap<(String, String), Region>,
    /// Actions nobody may do.
    denied: BTreeSet<String>,
    credentials_are_good: bool,
    /// How far the clock of the service is ahead of the machine's; none: dates are not checked.
    clock_check: Option<SignedDuration>,
    outages: BTreeMap<String, Outage>,
    faults: Faults,
    calls: BTreeMap<(String, String), Calls>,
}

impl Ec2 {
    /// A fake in which nothing has happened yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            ids: Ids::new(settings.seed),
            settings,
            regions: BTreeMap::new(),
            denied: BTreeSet::new(),
            credentials_are_good: true,
            clock_check: None,
            outages: BTreeMap::new(),
            faults: Faults::default(),
            calls: BTreeMap::new(),
        }
    }

    /// Does what a request asks for.
    ///
    /// The order of refusals: an unknown action, an unknown region, no token left, parameters nobody
    /// knows, a missing permission, `DryRun` ("checks whether you have the required permissions for the
    /// action, without actually making the request": `DryRunOperation` is the success), and then what
    /// the action itself finds wrong.
    ///
    /// # Errors
    ///
    /// What EC2 answers then.
    pub fn call(
        &mut self,
        now: Timestamp,
        region: &str,
        account: &str,
        params: &Params,
    ) -> Result<Xml, ApiError> {
        let action = params.get("Action").unwrap_or_default().to_owned();
        let answer = self.attempt(now, region, account, &action, params);
        let calls = self.calls_mut(region, &action);
        calls.count += 1;
        if let Err(error) = &answer {
            *calls.errors.entry(error.code.clone()).or_default() += 1;
        }
        answer
    }

    fn attempt(
        &mut self,
        now: Timestamp,
        region: &str,
        account: &str,
        action: &str,
        params: &Params,
    ) -> Result<Xml, ApiError> {
        let action = Action::named(action)?;
        let rest = params.without("Action").without("Version");
        let is_denied = self.denied.contains(action.name);
        let mut scope = self.scope(now, region, account)?;
        let (size, scale) = ((action.bucket)(&rest), scope.settings.throttle);
        if !scope.region.buckets.take(action.name, size, scale, now, 1) {
            return Err(ApiError::request_limit_exceeded());
        }
        let is_dry = rest.flag("DryRun")?;
        let rest = rest.without("DryRun");
        action.check(&rest)?;
        if is_denied {
            return Err(ApiError::unauthorized(action.name));
        }
        if is_dry {
            return Err(ApiError::dry_run());
        }
        (action.run)(&mut scope, &rest)
    }

    /// What a call in a region works on, after everything happened there that was due.
    fn scope<'a>(
        &'a mut self,
        now: Timestamp,
        name: &'a str,
        account: &'a str,
    ) -> Result<Scope<'a>, ApiError> {
        let settings = &self.settings;
        let setting = settings
            .regions
            .get(name)
            .ok_or_else(ApiError::auth_failure)?;
        let key = (account.to_owned(), name.to_owned());
        let region = self
            .regions
            .entry(key)
            .or_insert_with(|| Region::new(settings, setting));
        region.settle(settings, now);
        Ok(Scope {
            now,
            name,
            account,
            settings,
            setting,
            region,
            ids: &mut self.ids,
            denied: &self.denied,
        })
    }

    /// The account of a caller.
    ///
    /// # Errors
    ///
    /// `AuthFailure` for a key nobody knows, `RequestExpired` for a date too far from `wall_clock`.
    pub fn authenticate(&self, wall_clock: Timestamp, caller: &Caller) -> Result<String, ApiError> {
        let keys = &self.settings.access_keys;
        let account = keys
            .get(&caller.access_key)
            .or(keys.is_empty().then_some(&self.settings.account))
            .filter(|_| self.credentials_are_good)
            .ok_or_else(ApiError::auth_failure)?;
        if let Some(ahead) = self.clock_check {
            let service_clock = wall_clock.saturating_add(ahead).unwrap_or(wall_clock);
            let signed_at = caller.signed_at.ok_or_else(ApiError::auth_failure)?;
            if service_clock.duration_since(signed_at).abs() > CLOCK_TOLERANCE {
                return Err(ApiError::request_expired());
            }
        }
        Ok(account.clone())
    }

    /// How far the clock it shows is ahead of the machine's.
    #[must_use]
    pub fn clock_ahead(&self) -> SignedDuration {
        self.clock_check.unwrap_or_default()
    }

    /// An id for an answer.
    pub fn request_id(&mut self) -> String {
        self.ids.request()
    }

    /// The outage of a region, if there is one.
    #[must_use]
    pub fn outage(&self, region: &str) -> Option<Outage> {
        self.outages.get(region).copied()
    }

    /// What strikes a call that has just arrived. One that ends it before it did anything is counted
    /// here, because it will not come to [`Self::call`].
    pub fn strike(&mut self, region: &str, action: &str) -> Option<(Point, Effect)> {
        let strike = self.faults.strike(region, action)?;
        match &strike {
            (Point::Before, Effect::Error { code, .. }) => {
                let calls = self.calls_mut(region, action);
                calls.count += 1;
                *calls.errors.entry(code.clone()).or_default() += 1;
            }
            (Point::Before, Effect::Drop) => self.calls_mut(region, action).count += 1,
            (Point::Before, Effect::Delay { .. } | Effect::Hold) | (Point::After, _) => {}
        }
        Some(strike)
    }

    fn calls_mut(&mut self, region: &str, action: &str) -> &mut Calls {
        let key = (region.to_owned(), action.to_owned());
        self.calls.entry(key).or_default()
    }

    // What a test may change.

    /// Adds a fault point.
    pub fn add_fault(&mut self, fault: Fault) {
        self.faults.add(fault);
    }

    /// Removes the fault points that have not struck.
    pub fn clear_faults(&mut self) {
        self.faults.clear();
    }

    /// Fault points that have not struck as often as asked.
    #[must_use]
    pub fn waiting_faults(&self) -> &[Fault] {
        self.faults.waiting()
    }

    /// Begins or ends the outage of a region.
    pub fn set_outage(&mut self, region: &str, outage: Option<Outage>) {
        match outage {
            Some(outage) => self.outages.insert(region.to_owned(), outage),
            None => self.outages.remove(region),
        };
    }

    /// Takes the permission for an action away, or gives it back. Without `RunInstances` a fleet
    /// answers `UnauthorizedOperation` for each override.
    pub fn set_permission(&mut self, action: &str, allowed: bool) {
        if allowed {
            self.denied.remove(action);
        } else {
            self.denied.insert(action.to_owned());
        }
    }

    /// Whether the credentials of callers are good; if not every call gets `AuthFailure`.
    pub const fn set_credentials(&mut self, good: bool) {
        self.credentials_are_good = good;
    }

    /// Checks dates of requests against a clock that is so far ahead of the machine's; `None` checks
    /// none.
    pub const fn set_clock_check(&mut self, ahead: Option<SignedDuration>) {
        self.clock_check = ahead;
    }

    /// Scales all token buckets; 0 switches throttling off.
    pub const fn set_throttle(&mut self, scale: f64) {
        self.settings.throttle = scale;
    }

    /// Sets how many machines a pool has free from now on.
    ///
    /// # Errors
    ///
    /// A sentence if the region or the zone does not exist.
    pub fn set_capacity(
        &mut self,
        now: Timestamp,
        zone: &str,
        instance_type: &str,
        capacity_type: CapacityType,
        free: u32,
    ) -> Result<(), String> {
        let region = self.region_of_zone(zone)?;
        self.known_type(instance_type)?;
        let pool = Pool {
            instance_type: instance_type.to_owned(),
            zone: zone.to_owned(),
            capacity_type,
        };
        self.ours(now, &region)?.set_free(pool, free);
        Ok(())
    }

    /// Sets a spot price from now on: the walk of this price ends.
    ///
    /// # Errors
    ///
    /// A sentence if the zone or the type does not exist.
    pub fn set_price(
        &mut self,
        now: Timestamp,
        zone: &str,
        instance_type: &str,
        price: f64,
    ) -> Result<(), String> {
        let region = self.region_of_zone(zone)?;
        self.known_type(instance_type)?;
        let change = Change { since: now, price };
        self.ours(now, &region)?
            .set_price(instance_type, zone, change);
        Ok(())
    }

    /// Sets the account's quota of vCPUs.
    ///
    /// # Errors
    ///
    /// A sentence if the region does not exist.
    pub fn set_quota(
        &mut self,
        now: Timestamp,
        region: &str,
        capacity_type: CapacityType,
        vcpus: u32,
    ) -> Result<(), String> {
        self.ours(now, region)?.set_quota(capacity_type, vcpus);
        Ok(())
    }

    /// Sets how many addresses of a subnet are free; `None` removes the subnet.
    ///
    /// # Errors
    ///
    /// A sentence if the subnet does not exist.
    pub fn set_addresses(
        &mut self,
        now: Timestamp,
        region: &str,
        subnet: &str,
        free: Option<u32>,
    ) -> Result<(), String> {
        let subnets = &mut self.ours(now, region)?.subnets;
        let found = subnets
            .get_mut(subnet)
            .ok_or_else(|| format!("no subnet `{subnet}` in `{region}`"))?;
        match free {
            Some(free) => found.free = free,
            None => {
                subnets.remove(subnet);
            }
        }
        Ok(())
    }

    /// Adds an image.
    ///
    /// # Errors
    ///
    /// A sentence if the region does not exist.
    pub fn register_image(
        &mut self,
        now: Timestamp,
        region: &str,
        image: ImageSetting,
    ) -> Result<(), String> {
        let images = &mut self.ours(now, region)?.images;
        images.insert(image.id.clone(), image);
        Ok(())
    }

    /// Deletes an image. Instances launched from it go on.
    ///
    /// # Errors
    ///
    /// A sentence if it does not exist.
    pub fn deregister_image(
        &mut self,
        now: Timestamp,
        region: &str,
        id: &str,
    ) -> Result<(), String> {
        let removed = self.ours(now, region)?.images.remove(id);
        removed
            .map(drop)
            .ok_or_else(|| format!("no image `{id}` in `{region}`"))
    }

    /// Announces that EC2 takes a spot instance back: the notice can be seen from `from` on and the
    /// instance ends two minutes later ([`Timing::notice_for`](super::Timing)).
    ///
    /// # Errors
    ///
    /// A sentence if it is no spot instance, ends already, or has its notice.
    pub fn interrupt(&mut self, id: &str, from: Timestamp) -> Result<(), String> {
        let settings = &self.settings;
        self.regions
            .values_mut()
            .any(|region| region.interrupt(settings, from, id))
            .then_some(())
            .ok_or_else(|| format!("no spot instance `{id}` that could be interrupted"))
    }

    /// The notice an instance's metadata shows at `now` as `spot/instance-action`.
    #[must_use]
    pub fn spot_notice(&self, now: Timestamp, id: &str) -> Option<SpotNotice> {
        self.instance(id)?
            .spot_notice
            .filter(|notice| notice.from <= now)
    }

    /// Sets or lifts termination protection.
    ///
    /// # Errors
    ///
    /// A sentence if there is no such instance.
    pub fn set_protection(&mut self, id: &str, protected: bool) -> Result<(), String> {
        self.instance_mut(id)?.protected = protected;
        Ok(())
    }

    /// Lets the status checks of an instance fail, or pass again.
    ///
    /// # Errors
    ///
    /// A sentence if there is no such instance.
    pub fn set_impaired(&mut self, id: &str, impaired: bool) -> Result<(), String> {
        self.instance_mut(id)?.impaired = impaired;
        Ok(())
    }

    /// An instance somebody else started long ago: visible and running at once, on demand, in no
    /// fleet, outside capacity and quotas. Returns its id.
    ///
    /// # Errors
    ///
    /// A sentence if the region does not exist or has no subnet.
    pub fn add_foreign_instance(
        &mut self,
        now: Timestamp,
        region: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<String, String> {
        let (id, reservation) = (self.ids.next("i"), self.ids.next("r"));
        let ours = self.ours(now, region)?;
        let (subnet, zone) = ours
            .subnets
            .iter()
            .next()
            .map(|(id, subnet)| (id.clone(), subnet.zone.clone()))
            .ok_or_else(|| format!("no subnet in `{region}`"))?;
        let private_ip = ours.next_address();
        ours.add(Instance {
            id: id.clone(),
            region: region.to_owned(),
            reservation,
            fleet: None,
            client_token: String::new(),
            request_token: None,
            image: super::settings::image_id(region, "foreign"),
            instance_type: "m5.large".to_owned(),
            zone,
            subnet,
            capacity_type: CapacityType::OnDemand,
            launched_at: now - SignedDuration::from_hours(24 * 30),
            tags,
            user_data: None,
            protected: false,
            impaired: false,
            end: None,
            spot_notice: None,
            private_ip,
            groups: Vec::new(),
            key_name: None,
            profile: None,
            vcpus: 2,
        });
        Ok(id)
    }

    // What a test may look at.

    /// Every instance ever launched, in the order of launch within each region.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.regions
            .values()
            .flat_map(|region| region.instances.values())
    }

    /// One of them.
    #[must_use]
    pub fn instance(&self, id: &str) -> Option<&Instance> {
        self.instances().find(|instance| instance.id == id)
    }

    /// Its state, whatever calls can see; none once EC2 has forgotten it.
    ///
    /// # Errors
    ///
    /// A sentence if there was never such an instance.
    pub fn state(&mut self, now: Timestamp, id: &str) -> Result<Option<State>, String> {
        self.settle(now);
        let instance = self
            .instance(id)
            .ok_or_else(|| format!("no instance `{id}`"))?;
        Ok(instance.state(now, &self.settings.timing))
    }

    /// Lets everything happen in all regions whose time has come. Calls do this for their own region.
    pub fn settle(&mut self, now: Timestamp) {
        for region in self.regions.values_mut() {
            region.settle(&self.settings, now);
        }
    }

    /// The spot price of now, in dollars per hour.
    ///
    /// # Errors
    ///
    /// A sentence if the zone or the type does not exist.
    pub fn price(
        &mut self,
        now: Timestamp,
        zone: &str,
        instance_type: &str,
    ) -> Result<f64, String> {
        let region = self.region_of_zone(zone)?;
        self.known_type(instance_type)?;
        let account = self.settings.account.clone();
        let scope = self
            .scope(now, &region, &account)
            .map_err(|error| error.message)?;
        Ok(scope
            .region
            .spot_price(scope.settings, instance_type, zone)
            .at(now))
    }

    /// Calls by (region, action).
    #[must_use]
    pub const fn calls(&self) -> &BTreeMap<(String, String), Calls> {
        &self.calls
    }

    /// How often an action was called, in all regions.
    #[must_use]
    pub fn count(&self, action: &str) -> u64 {
        self.calls
            .iter()
            .filter(|((_, called), _)| called == action)
            .map(|(_, calls)| calls.count)
            .sum()
    }

    /// Client tokens that are remembered, as (region, action, token, number of instances).
    #[must_use]
    pub fn tokens(&self) -> Vec<(String, String, String, usize)> {
        let regions = self.regions.iter();
        regions
            .flat_map(|((_, name), region)| {
                region.tokens.iter().map(|((action, token), remembered)| {
                    let launched = remembered.instances.len();
                    (name.clone(), action.clone(), token.clone(), launched)
                })
            })
            .collect()
    }

    /// Its settings.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How fast things happen, to be changed.
    pub const fn timing_mut(&mut self) -> &mut super::Timing {
        &mut self.settings.timing
    }

    /// The default account's part of a region.
    fn ours(&mut self, now: Timestamp, region: &str) -> Result<&mut Region, String> {
        let setting = self
            .settings
            .regions
            .get(region)
            .ok_or_else(|| format!("no region `{region}`"))?;
        let key = (self.settings.account.clone(), region.to_owned());
        let settings = &self.settings;
        let ours = self
            .regions
            .entry(key)
            .or_insert_with(|| Region::new(settings, setting));
        ours.settle(settings, now);
        Ok(ours)
    }

    fn instance_mut(&mut self, id: &str) -> Result<&mut Instance, String> {
        self.regions
            .values_mut()
            .find_map(|region| region.instance_mut(id))
            .ok_or_else(|| format!("no instance `{id}`"))
    }

    fn region_of_zone(&self, zone: &str) -> Result<String, String> {
        self.settings
            .regions
            .iter()
            .find(|(_, region)| region.zones.iter().any(|known| known == zone))
            .map(|(name, _)| name.clone())
            .ok_or_else(|| format!("no zone `{zone}`"))
    }

    fn known_type(&self, instance_type: &str) -> Result<(), String> {
        let known = self.settings.instance_types.contains_key(instance_type);
        known
            .then_some(())
            .ok_or_else(|| format!("no instance type `{instance_type}`"))
    }
}

#[cfg(test)]
mod tests;
