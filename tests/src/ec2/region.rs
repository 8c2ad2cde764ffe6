//! What one account has in one region, and the free capacity it sees there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;

use super::error::ApiError;
use super::ids::{self, Ids};
use super::instance::{CapacityType, End, Instance, SpotNotice, State, later};
use super::params::Params;
use super::price::{Change, Pinned, Walk};
use super::settings::{ImageSetting, RegionSetting, Settings};
use super::template::Templates;
use super::throttle::Buckets;
use super::xml::Xml;

/// One thing the cloud sells: capacity is counted per each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pool {
    pub(super) instance_type: String,
    pub(super) zone: String,
    pub(super) capacity_type: CapacityType,
}

#[derive(Clone, Debug)]
pub(super) struct Subnet {
    pub(super) zone: String,
    pub(super) cidr: String,
    pub(super) free: u32,
}

/// What a call with a client token answered.
#[derive(Clone, Debug)]
pub(super) struct Remembered {
    pub(super) params: Params,
    pub(super) answer: Xml,
    pub(super) at: Timestamp,
    /// Instances it launched, by their numbers.
    pub(super) instances: Vec<u64>,
}

/// What happens by itself when its time has come.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// The instance gives back capacity, address and quota.
    Released(u64),
    /// The notice of the instance has run out.
    Interrupted(u64),
}

/// An account's part of a region.
#[derive(Debug)]
pub(super) struct Region {
    /// By the order of launch.
    pub(super) instances: BTreeMap<u64, Instance>,
    numbers: HashMap<String, u64>,
    pub(super) templates: Templates,
    pub(super) subnets: BTreeMap<String, Subnet>,
    pub(super) images: BTreeMap<String, ImageSetting>,
    /// By (action, token).
    pub(super) tokens: BTreeMap<(String, String), Remembered>,
    pub(super) buckets: Buckets,
    /// Only of pools that differ from [`Settings::capacity`].
    free: BTreeMap<Pool, u32>,
    pub(super) pinned: Pinned,
    used_vcpus: BTreeMap<CapacityType, u32>,
    quotas: BTreeMap<CapacityType, u32>,
    agenda: BTreeMap<Timestamp, Vec<Due>>,
    /// Addresses given out, for the next one.
    addresses: u32,
}

impl Region {
    pub(super) fn new(settings: &Settings, region: &RegionSetting) -> Self {
        let subnets = region.subnets.iter().map(|subnet| {
            let kept = Subnet {
                zone: subnet.zone.clone(),
                cidr: subnet.cidr.clone(),
                free: subnet.addresses,
            };
            (subnet.id.clone(), kept)
        });
        let images = region.images.iter();
        Self {
            instances: BTreeMap::new(),
            numbers: HashMap::new(),
            templates: Templates::default(),
            subnets: subnets.collect(),
            images: images
                .map(|image| (image.id.clone(), image.clone()))
                .collect(),
            tokens: BTreeMap::new(),
            buckets: Buckets::default(),
            free: BTreeMap::new(),
            pinned: Pinned::new(),
            used_vcpus: BTreeMap::new(),
            quotas: BTreeMap::from([
                (CapacityType::Spot, settings.spot_vcpus),
                (CapacityType::OnDemand, settings.on_demand_vcpus),
            ]),
            agenda: BTreeMap::new(),
            addresses: 0,
        }
    }

    /// Lets everything happen whose time has come. Called before anything else at `now`.
    pub(super) fn settle(&mut self, settings: &Settings, now: Timestamp) {
        while let Some(entry) = self.agenda.first_entry()
            && *entry.key() <= now
        {
            for due in entry.remove() {
                match due {
                    Due::Released(number) => self.release(settings, number),
                    Due::Interrupted(number) => self.reclaim(number),
                }
            }
        }
    }

    /// The instance with an id, if calls see it.
    pub(super) fn find(
        &self,
        id: &str,
        now: Timestamp,
        settings: &Settings,
    ) -> Result<(u64, State), ApiError> {
        if !ids::is_well_formed("i", id) {
            let message = format!("Invalid id: \"{id}\"");
            return Err(ApiError::client("InvalidInstanceID.Malformed", message));
        }
        let number = self.numbers.get(id);
        number
            .and_then(|number| {
                let state = self.instances[number].visible_state(now, &settings.timing)?;
                Some((*number, state))
            })
            .ok_or_else(|| not_found([id]))
    }

    /// The instance with an id, whatever calls see.
    pub(super) fn instance_mut(&mut self, id: &str) -> Option<&mut Instance> {
        self.instances.get_mut(self.numbers.get(id)?)
    }

    /// Adds an instance and returns its number. Capacity is the caller's matter.
    pub(super) fn add(&mut self, instance: Instance) -> u64 {
        let number = self.instances.len() as u64;
        self.numbers.insert(instance.id.clone(), number);
        self.instances.insert(number, instance);
        number
    }

    pub(super) fn next_address(&mut self) -> String {
        self.addresses += 1;
        let number = self.addresses + 9;
        format!(
            "172.{}.{}.{}",
            16 + (number >> 16) % 16,
            (number >> 8) & 255,
            number & 255
        )
    }

    pub(super) fn free(&self, settings: &Settings, pool: &Pool) -> u32 {
        self.free.get(pool).copied().unwrap_or(settings.capacity)
    }

    pub(super) fn set_free(&mut self, pool: Pool, free: u32) {
        self.free.insert(pool, free);
    }

    pub(super) fn free_vcpus(&self, capacity_type: CapacityType) -> u32 {
        let used = self.used_vcpus.get(&capacity_type).copied().unwrap_or(0);
        self.quotas[&capacity_type].saturating_sub(used)
    }

    pub(super) fn set_quota(&mut self, capacity_type: CapacityType, vcpus: u32) {
        self.quotas.insert(capacity_type, vcpus);
    }

    pub(super) fn used_vcpus_mut(&mut self, capacity_type: CapacityType) -> &mut u32 {
        self.used_vcpus.entry(capacity_type).or_insert(0)
    }

    /// Begins to end an instance at the wish of its owner; one that ends already is left alone.
    pub(super) fn terminate(&mut self, settings: &Settings, now: Timestamp, number: u64) {
        let Some(instance) = self.instances.get_mut(&number) else {
            return;
        };
        if instance.is_ending(now) {
            return;
        }
        let terminated_at = later(now, settings.timing.shutting_down_for);
        instance.end = Some(End {
            since: now,
            terminated_at,
            code: "Client.UserInitiatedShutdown",
            message: "Client.UserInitiatedShutdown: User initiated shutdown",
            reason: "User initiated",
        });
        self.at(terminated_at, Due::Released(number));
    }

    /// Announces from `from` on that EC2 takes a spot instance back. Says no to what is no spot instance,
    /// ends already, or has its notice.
    pub(super) fn interrupt(&mut self, settings: &Settings, from: Timestamp, id: &str) -> bool {
        let Some(&number) = self.numbers.get(id) else {
            return false;
        };
        let Some(instance) = self.instances.get_mut(&number) else {
            return false;
        };
        let is_spot = instance.capacity_type == CapacityType::Spot;
        if !is_spot || instance.end.is_some() || instance.spot_notice.is_some() {
            return false;
        }
        let time = later(from, settings.timing.notice_for);
        instance.spot_notice = Some(SpotNotice { from, time });
        self.at(time, Due::Interrupted(number));
        true
    }

    pub(super) fn spot_price(
        &self,
        settings: &Settings,
        instance_type: &str,
        zone: &str,
    ) -> Walk<'_> {
        let kind = settings.instance_types.get(instance_type);
        let average = kind.map_or(0.0, |kind| kind.on_demand * kind.spot_share);
        let key = (instance_type.to_owned(), zone.to_owned());
        let pinned = self.pinned.get(&key).map_or(&[][..], Vec::as_slice);
        let step = settings.timing.price_step;
        Walk::new(settings.seed, instance_type, zone, average, step, pinned)
    }

    pub(super) fn set_price(&mut self, instance_type: &str, zone: &str, change: Change) {
        let key = (instance_type.to_owned(), zone.to_owned());
        let changes = self.pinned.entry(key).or_default();
        changes.retain(|earlier| earlier.since < change.since);
        changes.push(change);
    }

    /// Forgets tokens whose time is over.
    pub(super) fn forget_tokens(&mut self, settings: &Settings, now: Timestamp) {
        let instances = &self.instances;
        self.tokens.retain(|_, remembered| {
            let mut forgotten_at = remembered.at;
            for number in &remembered.instances {
                match &instances[number].end {
                    None => return true,
                    Some(end) => forgotten_at = forgotten_at.max(end.terminated_at),
                }
            }
            now < later(forgotten_at, settings.timing.token_memory)
        });
    }

    fn at(&mut self, time: Timestamp, due: Due) {
        self.agenda.entry(time).or_default().push(due);
    }

    fn release(&mut self, settings: &Settings, number: u64) {
        self.give_back_quota_and_address(number);
        let instance = &self.instances[&number];
        if instance.fleet.is_some() {
            let pool = Pool {
                instance_type: instance.instance_type.clone(),
                zone: instance.zone.clone(),
                capacity_type: instance.capacity_type,
            };
            let free = self.free(settings, &pool);
            self.set_free(pool, free + 1);
        }
    }

    /// The machine goes to somebody who pays more, so its capacity is not free afterwards.
    fn reclaim(&mut self, number: u64) {
        let Some(instance) = self.instances.get_mut(&number) else {
            return;
        };
        // Its owner was faster.
        if instance.end.is_some() {
            return;
        }
        if let Some(notice) = instance.spot_notice {
            instance.end = Some(End {
                since: notice.time,
                terminated_at: notice.time,
                code: "Server.SpotInstanceTermination",
                message: "Server.SpotInstanceTermination: Spot instance termination",
                reason: "Server.SpotInstanceTermination",
            });
            self.give_back_quota_and_address(number);
        }
    }

    fn give_back_quota_and_address(&mut self, number: u64) {
        let instance = &self.instances[&number];
        // One that was simply there was never counted.
        if instance.fleet.is_none() {
            return;
        }
        if let Some(subnet) = self.subnets.get_mut(&instance.subnet) {
            subnet.free += 1;
        }
        let (vcpus, capacity_type) = (instance.vcpus, instance.capacity_type);
        *self.used_vcpus_mut(capacity_type) -= vcpus;
    }
}

/// What a call works on.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    pub(super) now: Timestamp,
    /// Name of the region.
    pub(super) name: &'a str,
    pub(super) account: &'a str,
    pub(super) settings: &'a Settings,
    pub(super) setting: &'a RegionSetting,
    pub(super) region: &'a mut Region,
    pub(super) ids: &'a mut Ids,
    /// Actions the account may not do.
    pub(super) denied: &'a BTreeSet<String>,
}

impl Scope<'_> {
    /// Answers a call with a client token again if it was made before; otherwise makes it and
    /// remembers the answer ("Ensuring idempotency in Amazon EC2 API requests", EC2 Developer Guide). A
    /// call that failed is not remembered.
    pub(super) fn once(
        &mut self,
        action: &str,
        params: &Params,
        call: impl FnOnce(&mut Self) -> Result<(Xml, Vec<u64>), ApiError>,
    ) -> Result<Xml, ApiError> {
        let Some(token) = params.get("ClientToken").filter(|token| !token.is_empty()) else {
            return call(self).map(|(answer, _)| answer);
        };
        if token.len() > 64 || !token.is_ascii() {
            let message = "The client token is not valid: expected at most 64 ASCII characters";
            return Err(ApiError::client("InvalidClientToken", message));
        }
        self.region.forget_tokens(self.settings, self.now);
        let key = (action.to_owned(), token.to_owned());
        if let Some(remembered) = self.region.tokens.get(&key) {
            if remembered.params != *params {
                return Err(ApiError::idempotent_parameter_mismatch(token));
            }
            return Ok(remembered.answer.clone());
        }
        let (answer, instances) = call(self)?;
        let remembered = Remembered {
            params: params.clone(),
            answer: answer.clone(),
            at: self.now,
            instances,
        };
        self.region.tokens.insert(key, remembered);
        Ok(answer)
    }
}

/// The error about ids nobody knows.
pub(super) fn not_found<'a>(ids: impl IntoIterator<Item = &'a str>) -> ApiError {
    let ids: Vec<_> = ids.into_iter().collect();
    let message = match ids.as_slice() {
        [one] => format!("The instance ID '{one}' does not exist"),
        many => format!("The instance IDs '{}' do not exist", many.join(", ")),
    };
    ApiError::client("InvalidInstanceID.NotFound", message)
}
