//! A fake EC2: its HTTP query protocol for the actions we use, with the limits, errors and delays that
//! real EC2 has and other imitations leave out.
//!
//! ## Theory of operation
//!
//! [`Ec2`] is a state machine: [`Ec2::call`] takes the moment, the region, the account and the
//! [`Params`] of a request, and returns the [`Xml`] of the answer or an [`ApiError`]. What happens by
//! itself (a launched instance becomes visible and runs, a terminated one is forgotten, an interrupted
//! one ends) is worked out from the moment of the next call, so nothing sleeps, and with a stepped
//! clock an hour passes in no time. Ids and prices follow from a seed.
//!
//! Around it is a thin HTTP edge that reads region and access key from the signature (which it does not
//! verify) and carries out [`Fault`] points: the next calls of an action fail, are dropped, delayed or
//! held, before or after they did their work. [`FakeEc2`] is the whole in a test; the program
//! `fake-ec2` is the whole for hands and other processes, steered by `POST /_control` ([`Command`]).
//!
//! Each rule names the page of AWS's documentation it comes from. Where AWS says nothing the fake takes
//! what is harder for its clients and says so. What it does not know it refuses with 501
//! `FakeEc2.NotImplemented` instead of ignoring it.

mod action;
mod allocate;
mod clock;
mod control;
mod describe;
mod error;
mod fault;
mod filter;
mod fleet;
mod harness;
mod ids;
mod instance;
mod instances;
mod machine;
mod page;
mod params;
mod price;
mod region;
mod server;
mod settings;
mod tags;
mod template;
mod throttle;
mod xml;

pub use clock::Clock;
pub use control::Command;
pub use error::ApiError;
pub use fault::{Effect, Fault, Point};
pub use harness::FakeEc2;
pub use instance::{CapacityType, End, Instance, SpotNotice, State};
pub use machine::{Caller, Calls, Ec2, Outage};
pub use params::Params;
pub use server::{CONTROL, Shared, serve};
pub use settings::{
    ClockSetting, ImageSetting, InstanceTypeSetting, RegionSetting, Settings, SubnetSetting,
    Timing, image_id, subnet_id,
};
pub use xml::Xml;
