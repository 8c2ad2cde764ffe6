use proptest::prelude::*;

use super::*;
use crate::ec2::settings::{Timing, image_id, subnet_id};

const ACCOUNT: &str = "123456789012";
const REGION: &str = "us-east-1";

/// A fake whose time a test holds in its hand.
struct World {
    ec2: Ec2,
    now: Timestamp,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            ec2: Ec2::new(settings),
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
        }
    }

    /// Everything at once, nothing throttled.
    fn simple() -> Self {
        Self::new(Settings {
            timing: Timing::immediate(),
            throttle: 0.0,
            ..Settings::default()
        })
    }

    fn call(&mut self, form: &str) -> Result<String, ApiError> {
        let params = Params::parse(form);
        let action = params.get("Action").unwrap().to_owned();
        let answer = self.ec2.call(self.now, REGION, ACCOUNT, &params)?;
        Ok(answer.response(&action, "request"))
    }

    fn code(&mut self, form: &str) -> String {
        match self.call(form) {
            Ok(answer) => panic!("expected an error: {answer}"),
            Err(error) => error.code,
        }
    }

    fn pass(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// A template `lt` of the stable image, with user data.
    fn template(&mut self) -> &mut Self {
        let image = image_id(REGION, "stable");
        let form = format!(
            "Action=CreateLaunchTemplate&LaunchTemplateName=tpl&LaunchTemplateData.ImageId={image}&LaunchTemplateData.InstanceType=c5.large&LaunchTemplateData.UserData=e30%3D&LaunchTemplateData.TagSpecification.1.ResourceType=instance&LaunchTemplateData.TagSpecification.1.Tag.1.Key=from&LaunchTemplateData.TagSpecification.1.Tag.1.Value=template"
        );
        self.call(&form).unwrap();
        self
    }

    fn launch(&mut self, count: u32, more: &str) -> Vec<String> {
        let answer = self.call(&fleet(count, more)).unwrap();
        texts(&answer, "instanceIds")
    }

    fn terminate(&mut self, ids: &[String]) -> Result<String, ApiError> {
        let ids: Vec<_> = ids
            .iter()
            .enumerate()
            .map(|(place, id)| format!("&InstanceId.{}={id}", place + 1))
            .collect();
        self.call(&format!("Action=TerminateInstances{}", ids.concat()))
    }

    fn state(&mut self, id: &str) -> Option<State> {
        self.ec2.state(self.now, id).unwrap()
    }
}

/// A fleet of spot instances, in the zones `a` and `b` unless `more` says otherwise.
fn fleet(count: u32, more: &str) -> String {
    let places = if more.contains("Overrides") {
        String::new()
    } else {
        let (a, b) = (subnet_id("us-east-1a"), subnet_id("us-east-1b"));
        format!("&{CONFIG}.Overrides.1.SubnetId={a}&{CONFIG}.Overrides.2.SubnetId={b}")
    };
    format!(
        "Action=CreateFleet&Type=instant&{CONFIG}.LaunchTemplateSpecification.LaunchTemplateName=tpl&{CONFIG}.LaunchTemplateSpecification.Version=$Latest&TargetCapacitySpecification.TotalTargetCapacity={count}&TargetCapacitySpecification.DefaultTargetCapacityType=spot{places}{more}"
    )
}

const CONFIG: &str = "LaunchTemplateConfigs.1";

/// All texts between `<item>` inside an element.
fn texts(xml: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    xml.split(&open)
        .skip(1)
        .filter_map(|rest| rest.split_once(&close))
        .flat_map(|(inside, _)| inside.split("<item>").skip(1))
        .filter_map(|rest| Some(rest.split_once("</item>")?.0.to_owned()))
        .collect()
}

/// All values of an element.
fn values(xml: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    xml.split(&open)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(&close)?.0.to_owned()))
        .collect()
}

#[test]
fn an_unknown_action_and_an_unknown_region_are_refused() {
    let mut world = World::simple();
    assert_eq!(world.code("Action=MakeCoffee"), "InvalidAction");
    let params = Params::parse("Action=DescribeRegions");
    let error = world.ec2.call(world.now, "mars-north-1", ACCOUNT, &params);
    assert_eq!(error.unwrap_err().code, "AuthFailure");
}

#[test]
fn a_parameter_the_fake_does_not_know_is_refused_and_not_ignored() {
    let mut world = World::simple();
    let error = world
        .call("Action=TerminateInstances&InstanceId.1=i-1&Force=true")
        .unwrap_err();
    assert_eq!(
        (error.status, error.code.as_str()),
        (501, "FakeEc2.NotImplemented")
    );
    assert!(error.message.contains("`Force`"), "{}", error.message);
}

#[test]
fn a_dry_run_says_whether_it_is_allowed_and_does_nothing() {
    let mut world = World::simple();
    world.template();
    let form = fleet(1, "&DryRun=true");
    let error = world.call(&form).unwrap_err();
    assert_eq!(
        (error.status, error.code.as_str()),
        (412, "DryRunOperation")
    );
    world.ec2.set_permission("CreateFleet", false);
    let error = world.call(&form).unwrap_err();
    assert_eq!(
        (error.status, error.code.as_str()),
        (403, "UnauthorizedOperation")
    );
    assert_eq!(
        world.code("Action=RunInstances&DryRun=true&MinCount=1"),
        "DryRunOperation"
    );
    assert_eq!(
        world.code("Action=RunInstances&MinCount=1"),
        "FakeEc2.NotImplemented"
    );
    assert_eq!(world.ec2.instances().count(), 0);
}

#[test]
fn a_launched_instance_is_unknown_then_pending_then_running() {
    let mut world = World::new(Settings::default());
    let id = world.template().launch(1, "").remove(0);
    let seen = |world: &mut World| {
        let answer = world.call("Action=DescribeInstances&MaxResults=5").unwrap();
        values(&answer, "name")
    };
    assert!(seen(&mut world).is_empty());
    let by_id = format!("Action=DescribeInstances&InstanceId.1={id}");
    assert_eq!(world.code(&by_id), "InvalidInstanceID.NotFound");
    assert_eq!(
        world.terminate(std::slice::from_ref(&id)).unwrap_err().code,
        "InvalidInstanceID.NotFound"
    );
    world.pass(2);
    assert_eq!(seen(&mut world), ["pending"]);
    world.call(&by_id).unwrap();
    world.pass(7);
    assert_eq!(seen(&mut world), ["pending"]);
    world.pass(1);
    assert_eq!(seen(&mut world), ["running"]);
}

#[test]
fn tags_may_become_visible_later_than_their_instance() {
    let mut world = World::new(Settings {
        timing: Timing {
            tags_visible_after: std::time::Duration::from_secs(9),
            ..Timing::default()
        },
        ..Settings::default()
    });
    world.template().launch(1, "");
    let count = |world: &mut World, filter: &str| {
        let form = format!("Action=DescribeInstances&Filter.1.Name={filter}&Filter.1.Value.1=*");
        values(&world.call(&form).unwrap(), "instanceId").len()
    };
    let both = |world: &mut World| (count(world, "instance-id"), count(world, "tag:from"));
    assert_eq!(both(&mut world), (0, 0));
    world.pass(2);
    assert_eq!(both(&mut world), (1, 0));
    world.pass(7);
    assert_eq!(both(&mut world), (1, 1));
}

#[test]
fn a_terminated_instance_shuts_down_is_shown_for_an_hour_and_then_gone() {
    let mut world = World::new(Settings::default());
    let ids = world.template().launch(1, "");
    world.pass(60);
    let answer = world.terminate(&ids).unwrap();
    assert_eq!(values(&answer, "name"), ["shutting-down", "running"]);
    world.pass(30);
    // Once more is no error.
    let answer = world.terminate(&ids).unwrap();
    assert_eq!(values(&answer, "name"), ["terminated", "terminated"]);
    let by_id = format!("Action=DescribeInstances&InstanceId.1={}", ids[0]);
    world.pass(3599);
    let answer = world.call(&by_id).unwrap();
    assert!(
        answer.contains("<code>Client.UserInitiatedShutdown</code>"),
        "{answer}"
    );
    world.pass(1);
    assert_eq!(world.code(&by_id), "InvalidInstanceID.NotFound");
    assert_eq!(
        world.terminate(&ids).unwrap_err().code,
        "InvalidInstanceID.NotFound"
    );
    assert_eq!(
        world.ec2.instances().count(),
        1,
        "the fake itself forgets nothing"
    );
}

#[test]
fn one_unknown_id_fails_the_whole_termination() {
    let mut world = World::simple();
    let mut ids = world.template().launch(2, "");
    ids.push("i-0123456789abcdef0".to_owned());
    let error = world.terminate(&ids).unwrap_err();
    assert_eq!(error.code, "InvalidInstanceID.NotFound");
    assert!(
        error
            .message
            .contains("'i-0123456789abcdef0' does not exist")
    );
    assert_eq!(world.state(&ids[0]), Some(State::Running));
    ids[2] = "i-xyz".to_owned();
    assert_eq!(
        world.terminate(&ids).unwrap_err().code,
        "InvalidInstanceID.Malformed"
    );
    ids[2] = ids[0].clone();
    assert_eq!(
        values(&world.terminate(&ids).unwrap(), "instanceId").len(),
        2
    );
}

#[test]
fn a_protected_instance_fails_the_call_and_spares_its_zone_alone() {
    let mut world = World::simple();
    world.template();
    world
        .ec2
        .set_capacity(world.now, "us-east-1a", "c5.large", CapacityType::Spot, 2)
        .unwrap();
    let ids = world.launch(
        3,
        "&SpotOptions.AllocationStrategy=lowest-price&SpotOptions.InstancePoolsToUseCount=2",
    );
    let zone = |world: &World, id: &String| world.ec2.instance(id).unwrap().zone.clone();
    let protected = ids
        .iter()
        .find(|id| zone(&world, id) == "us-east-1a")
        .unwrap()
        .clone();
    world.ec2.set_protection(&protected, true).unwrap();
    assert_eq!(
        world.terminate(&ids).unwrap_err().code,
        "OperationNotPermitted"
    );
    for id in &ids {
        let expected = if zone(&world, id) == "us-east-1a" {
            State::Running
        } else {
            State::Terminated
        };
        assert_eq!(world.state(id), Some(expected));
    }
}

#[test]
fn a_termination_takes_a_thousand_ids_and_no_more() {
    let mut world = World::simple();
    let ids: Vec<_> = (0..1001)
        .map(|number| format!("i-0{number:016x}"))
        .collect();
    assert_eq!(
        world.terminate(&ids).unwrap_err().code,
        "InvalidParameterValue"
    );
    assert_eq!(
        world.terminate(&ids[..1000]).unwrap_err().code,
        "InvalidInstanceID.NotFound"
    );
}

#[test]
fn a_fleet_takes_what_there_is_and_says_which_override_had_no_more() {
    let mut world = World::simple();
    world.template();
    for zone in ["us-east-1a", "us-east-1b"] {
        world
            .ec2
            .set_capacity(world.now, zone, "c5.large", CapacityType::Spot, 2)
            .unwrap();
    }
    let answer = world.call(&fleet(5, "")).unwrap();
    assert_eq!(texts(&answer, "instanceIds").len(), 4);
    let codes = [
        "InsufficientInstanceCapacity",
        "InsufficientInstanceCapacity",
    ];
    assert_eq!(values(&answer, "errorCode"), codes);
    let errors = &values(&answer, "errorSet")[0];
    assert!(errors.contains(&subnet_id("us-east-1a")), "{errors}");
    assert!(errors.contains("<lifecycle>spot</lifecycle>"), "{errors}");
    // What is ended is free again.
    let ids = texts(&answer, "instanceIds");
    world.terminate(&ids).unwrap();
    assert_eq!(world.launch(5, "").len(), 4);
}

#[test]
fn an_override_without_capacity_is_passed_over() {
    let mut world = World::simple();
    world.template();
    let now = world.now;
    world
        .ec2
        .set_capacity(now, "us-east-1a", "c5.large", CapacityType::Spot, 0)
        .unwrap();
    world
        .ec2
        .set_price(now, "us-east-1a", "c5.large", 0.001)
        .unwrap();
    let strategy = "&SpotOptions.AllocationStrategy=lowest-price";
    let answer = world.call(&fleet(3, strategy)).unwrap();
    assert_eq!(texts(&answer, "instanceIds").len(), 3);
    let zones: Vec<_> = world
        .ec2
        .instances()
        .map(|instance| instance.zone.clone())
        .collect();
    assert_eq!(zones, ["us-east-1b"; 3]);
}

#[test]
fn strategies_choose_by_price_or_by_depth() {
    for (strategy, expected) in [
        ("lowest-price", "us-east-1a"),
        ("capacity-optimized", "us-east-1b"),
        ("price-capacity-optimized", "us-east-1b"),
    ] {
        let mut world = World::simple();
        world.template();
        let now = world.now;
        world
            .ec2
            .set_price(now, "us-east-1a", "c5.large", 0.01)
            .unwrap();
        world
            .ec2
            .set_price(now, "us-east-1b", "c5.large", 0.02)
            .unwrap();
        world
            .ec2
            .set_capacity(now, "us-east-1a", "c5.large", CapacityType::Spot, 3)
            .unwrap();
        let strategy = format!("&SpotOptions.AllocationStrategy={strategy}");
        world.launch(4, &strategy);
        let first = &world.ec2.instances().next().unwrap().zone;
        assert_eq!(first, expected, "{strategy}");
    }
}

#[test]
fn account_quotas_count_vcpus_and_have_codes_of_their_own() {
    let mut world = World::simple();
    world.template();
    world
        .ec2
        .set_quota(world.now, REGION, CapacityType::Spot, 5)
        .unwrap();
    world
        .ec2
        .set_quota(world.now, REGION, CapacityType::OnDemand, 2)
        .unwrap();
    let answer = world.call(&fleet(3, "")).unwrap();
    assert_eq!(texts(&answer, "instanceIds").len(), 2);
    assert_eq!(
        values(&answer, "errorCode"),
        ["MaxSpotInstanceCountExceeded"; 2]
    );
    let on_demand = "&TargetCapacitySpecification.OnDemandTargetCapacity=2";
    let answer = world.call(&fleet(2, on_demand)).unwrap();
    assert_eq!(texts(&answer, "instanceIds").len(), 1);
    assert_eq!(values(&answer, "errorCode"), ["VcpuLimitExceeded"; 2]);
    assert!(answer.contains("<lifecycle>on-demand</lifecycle>"));
}

#[test]
fn addresses_of_a_subnet_run_out() {
    let mut world = World::simple();
    world.template();
    let subnet = subnet_id("us-east-1a");
    world
        .ec2
        .set_addresses(world.now, REGION, &subnet, Some(1))
        .unwrap();
    let place = format!("&{CONFIG}.Overrides.1.SubnetId={subnet}");
    let answer = world.call(&fleet(2, &place)).unwrap();
    assert_eq!(texts(&answer, "instanceIds").len(), 1);
    assert_eq!(
        values(&answer, "errorCode"),
        ["InsufficientFreeAddressesInSubnet"]
    );
    let free = |world: &mut World| {
        let form = format!("Action=DescribeSubnets&SubnetId.1={subnet}");
        values(&world.call(&form).unwrap(), "availableIpAddressCount")
    };
    assert_eq!(free(&mut world), ["0"]);
    let ids = texts(&answer, "instanceIds");
    world.terminate(&ids).unwrap();
    assert_eq!(free(&mut world), ["1"]);
}

#[test]
fn what_is_wrong_with_an_override_is_its_own_error() {
    let mut world = World::simple();
    world.template();
    let overrides = format!(
        "&{CONFIG}.Overrides.1.ImageId=ami-0123456789abcdef0&{CONFIG}.Overrides.1.AvailabilityZone=us-east-1a\
         &{CONFIG}.Overrides.2.SubnetId=subnet-0123456789abcdef0&{CONFIG}.Overrides.2.AvailabilityZone=us-east-1b\
         &{CONFIG}.Overrides.3.InstanceType=x9.huge&{CONFIG}.Overrides.3.AvailabilityZone=us-east-1c\
         &{CONFIG}.Overrides.4.MaxPrice=0.0011&{CONFIG}.Overrides.4.AvailabilityZone=us-east-1d"
    );
    let answer = world.call(&fleet(1, &overrides)).unwrap();
    let mut codes = values(&answer, "errorCode");
    codes.sort_unstable();
    let expected = [
        "InvalidAMIID.NotFound",
        "InvalidParameterValue",
        "InvalidSubnetID.NotFound",
        "SpotMaxPriceTooLow",
    ];
    assert_eq!(codes, expected);
    assert!(texts(&answer, "instanceIds").is_empty());
    world.ec2.set_permission("RunInstances", false);
    let answer = world.call(&fleet(1, "")).unwrap();
    assert_eq!(values(&answer, "errorCode"), ["UnauthorizedOperation"; 2]);
}

#[test]
fn what_is_wrong_with_a_fleet_fails_the_call() {
    let mut world = World::simple();
    assert_eq!(
        world.code(&fleet(1, "")),
        "InvalidLaunchTemplateName.NotFoundException"
    );
    world.template();
    let same_pool = format!(
        "&{CONFIG}.Overrides.1.AvailabilityZone=us-east-1a&{CONFIG}.Overrides.2.AvailabilityZone=us-east-1a"
    );
    assert_eq!(world.code(&fleet(1, &same_pool)), "InvalidFleetConfig");
    assert_eq!(world.code(&fleet(0, "")), "InvalidParameterValue");
    let version = fleet(1, "").replace("$Latest", "7");
    assert_eq!(
        world.code(&version),
        "InvalidLaunchTemplateId.VersionNotFound"
    );
    assert_eq!(
        world.code(&fleet(1, "&SpotOptions.AllocationStrategy=luck")),
        "InvalidParameterValue"
    );
}

#[test]
fn a_fleet_that_misses_its_minimum_launches_nothing() {
    let mut world = World::simple();
    world.template();
    for zone in ["us-east-1a", "us-east-1b"] {
        world
            .ec2
            .set_capacity(world.now, zone, "c5.large", CapacityType::Spot, 1)
            .unwrap();
    }
    assert!(
        world
            .launch(5, "&SpotOptions.MinTargetCapacity=3")
            .is_empty()
    );
    assert_eq!(world.launch(5, "&SpotOptions.MinTargetCapacity=2").len(), 2);
}

#[test]
fn a_fleet_stops_at_its_total_price() {
    let mut world = World::simple();
    world.template();
    for zone in ["us-east-1a", "us-east-1b"] {
        world
            .ec2
            .set_price(world.now, zone, "c5.large", 0.03)
            .unwrap();
    }
    assert_eq!(world.launch(5, "&SpotOptions.MaxTotalPrice=0.1").len(), 3);
}

#[test]
fn the_same_token_launches_once_and_answers_the_same_again() {
    let mut world = World::simple();
    world.template();
    let form = fleet(2, "&ClientToken=intent-1");
    let first = world.call(&form).unwrap();
    world.pass(3600);
    assert_eq!(world.call(&form).unwrap(), first);
    assert_eq!(world.ec2.instances().count(), 2);
    assert_eq!(
        world.code(&fleet(3, "&ClientToken=intent-1")),
        "IdempotentParameterMismatch"
    );
    assert_ne!(
        world.call(&fleet(2, "&ClientToken=intent-2")).unwrap(),
        first
    );
    assert_eq!(world.ec2.instances().count(), 4);
    let long = format!("&ClientToken={}", "x".repeat(65));
    assert_eq!(world.code(&fleet(2, &long)), "InvalidClientToken");
}

#[test]
fn a_token_is_forgotten_a_day_after_its_last_instance_ended_and_not_before() {
    let mut world = World::simple();
    world.template();
    let form = fleet(2, "&ClientToken=intent-1");
    let first = world.call(&form).unwrap();
    let ids = texts(&first, "instanceIds");
    world.pass(30 * 24 * 3600);
    assert_eq!(world.call(&form).unwrap(), first);
    world.terminate(&ids).unwrap();
    world.pass(24 * 3600 - 1);
    assert_eq!(world.call(&form).unwrap(), first);
    world.pass(1);
    assert_ne!(world.call(&form).unwrap(), first);
    assert_eq!(world.ec2.instances().count(), 4);
}

#[test]
fn instances_carry_tags_of_template_request_and_fleet() {
    let mut world = World::simple();
    world.template();
    let tags = "&TagSpecification.1.ResourceType=instance&TagSpecification.1.Tag.1.Key=pool&TagSpecification.1.Tag.1.Value=linux\
                &TagSpecification.2.ResourceType=fleet&TagSpecification.2.Tag.1.Key=pool&TagSpecification.2.Tag.1.Value=linux";
    world.launch(1, tags);
    let instance = world.ec2.instances().next().unwrap();
    let keys: Vec<_> = instance.tags.keys().map(String::as_str).collect();
    let expected = [
        "aws:ec2:fleet-id",
        "aws:ec2launchtemplate:id",
        "aws:ec2launchtemplate:version",
        "from",
        "pool",
    ];
    assert_eq!(keys, expected);
    assert_eq!(instance.user_data.as_deref(), Some("e30="));
    let reserved = tags.replace("Key=pool", "Key=aws:pool");
    assert_eq!(world.code(&fleet(1, &reserved)), "InvalidParameterValue");
}

#[test]
fn tags_are_added_and_deleted_on_all_resources_or_none() {
    let mut world = World::simple();
    let ids = world.template().launch(2, "");
    let (one, two) = (&ids[0], &ids[1]);
    let both = format!("&ResourceId.1={one}&ResourceId.2={two}");
    let tag = "&Tag.1.Key=hold&Tag.1.Value=yes";
    let bad = both.replace(two.as_str(), "i-0123456789abcdef0");
    assert_eq!(
        world.code(&format!("Action=CreateTags{bad}{tag}")),
        "InvalidInstanceID.NotFound"
    );
    assert!(!world.ec2.instance(one).unwrap().tags.contains_key("hold"));
    world
        .call(&format!("Action=CreateTags{both}{tag}"))
        .unwrap();
    assert_eq!(world.ec2.instance(two).unwrap().tags["hold"], "yes");
    let other_value = format!("Action=DeleteTags{both}&Tag.1.Key=hold&Tag.1.Value=no");
    world.call(&other_value).unwrap();
    assert!(world.ec2.instance(one).unwrap().tags.contains_key("hold"));
    world
        .call(&format!("Action=DeleteTags{both}&Tag.1.Key=hold"))
        .unwrap();
    assert!(!world.ec2.instance(one).unwrap().tags.contains_key("hold"));
    let many: Vec<_> = (1..=51)
        .map(|number| format!("&Tag.{number}.Key=k{number}&Tag.{number}.Value=v"))
        .collect();
    let many = format!("Action=CreateTags{both}{}", many.concat());
    assert_eq!(world.code(&many), "TagLimitExceeded");
}

#[test]
fn pages_count_instances_and_hold_together_while_others_end() {
    let mut world = World::simple();
    let ids = world.template().launch(12, "");
    let mut seen = Vec::new();
    let mut token = String::new();
    loop {
        let form = format!("Action=DescribeInstances&MaxResults=5{token}");
        let answer = world.call(&form).unwrap();
        let page = values(&answer, "instanceId");
        assert!(page.len() <= 5);
        seen.extend(page);
        match values(&answer, "nextToken").first() {
            Some(next) => token = format!("&NextToken={next}"),
            None => break,
        }
    }
    assert_eq!(seen, ids);
    let both = format!(
        "Action=DescribeInstances&MaxResults=5&InstanceId.1={}",
        ids[0]
    );
    assert_eq!(world.code(&both), "InvalidParameterCombination");
    assert_eq!(
        world.code("Action=DescribeInstances&MaxResults=1001"),
        "InvalidParameterValue"
    );
}

#[test]
fn an_interruption_is_announced_two_minutes_before_the_end() {
    let mut world = World::new(Settings::default());
    let id = world.template().launch(1, "").remove(0);
    world.pass(60);
    let from = world.now + SignedDuration::from_secs(30);
    world.ec2.interrupt(&id, from).unwrap();
    assert!(
        world.ec2.interrupt(&id, world.now).is_err(),
        "there is one notice"
    );
    world.pass(29);
    assert_eq!(world.ec2.spot_notice(world.now, &id), None);
    world.pass(1);
    let notice = world.ec2.spot_notice(world.now, &id).unwrap();
    assert_eq!(notice.time, from + SignedDuration::from_secs(120));
    world.pass(119);
    assert_eq!(world.state(&id), Some(State::Running));
    world.pass(1);
    assert_eq!(world.state(&id), Some(State::Terminated));
    let by_id = format!("Action=DescribeInstances&InstanceId.1={id}");
    let answer = world.call(&by_id).unwrap();
    assert!(
        answer.contains("<code>Server.SpotInstanceTermination</code>"),
        "{answer}"
    );
    assert!(world.ec2.interrupt(&id, world.now).is_err());
}

#[test]
fn an_instance_ended_by_its_owner_is_not_interrupted_and_gives_back_once() {
    let mut world = World::simple();
    world.template();
    for zone in ["us-east-1a", "us-east-1b"] {
        world
            .ec2
            .set_capacity(world.now, zone, "c5.large", CapacityType::Spot, 1)
            .unwrap();
    }
    let ids = world.launch(2, "");
    world.ec2.interrupt(&ids[0], world.now).unwrap();
    world.ec2.interrupt(&ids[1], world.now).unwrap();
    world.terminate(&ids[..1]).unwrap();
    world.pass(120);
    assert_eq!(
        world
            .ec2
            .instance(&ids[0])
            .unwrap()
            .end
            .as_ref()
            .unwrap()
            .code,
        "Client.UserInitiatedShutdown"
    );
    assert_eq!(world.state(&ids[1]), Some(State::Terminated));
    // The interrupted machine belongs to somebody else now.
    assert_eq!(world.launch(2, "").len(), 1);
}

#[test]
fn each_action_has_a_bucket_of_the_published_size() {
    let sizes = [
        ("CreateFleet", 50, 5),
        ("RunInstances&DryRun=true", 5, 2),
        ("TerminateInstances", 100, 5),
        ("CreateTags", 100, 10),
        ("DescribeInstances", 50, 10),
        ("DescribeInstances&MaxResults=5", 100, 20),
        ("DescribeImages", 100, 20),
        ("CreateLaunchTemplateVersion", 100, 5),
    ];
    for (form, size, refill) in sizes {
        let mut world = World::new(Settings::default());
        let admitted = |world: &mut World| {
            let form = format!("Action={form}");
            let is_admitted = |world: &mut World| !matches!(world.call(&form), Err(error) if error.code == "RequestLimitExceeded");
            (0..1000).take_while(|_| is_admitted(world)).count()
        };
        assert_eq!(admitted(&mut world), size, "{form}");
        world.pass(1);
        assert_eq!(admitted(&mut world), refill, "{form}");
        assert_eq!(
            world.call(&format!("Action={form}")).unwrap_err().status,
            503
        );
        world.ec2.set_throttle(0.0);
        assert_eq!(admitted(&mut world), 1000, "{form}");
    }
}

#[test]
fn a_throttled_action_leaves_the_others_and_other_regions_alone() {
    let mut world = World::new(Settings::default());
    while world.call("Action=DescribeImages").is_ok() {}
    assert_eq!(world.code("Action=DescribeImages"), "RequestLimitExceeded");
    world.call("Action=DescribeSubnets").unwrap();
    let params = Params::parse("Action=DescribeImages");
    world
        .ec2
        .call(world.now, "us-west-2", ACCOUNT, &params)
        .unwrap();
    let calls = &world.ec2.calls()[&(REGION.to_owned(), "DescribeImages".to_owned())];
    assert_eq!(
        (calls.count, calls.errors["RequestLimitExceeded"]),
        (102, 2)
    );
}

#[test]
fn launched_machines_draw_on_a_bucket_of_their_own() {
    let mut world = World::new(Settings {
        capacity: 10_000,
        ..Settings::default()
    });
    world.template();
    assert_eq!(world.launch(900, "").len(), 900);
    let answer = world.call(&fleet(200, "")).unwrap();
    assert_eq!(texts(&answer, "instanceIds").len(), 100);
    assert_eq!(values(&answer, "errorCode"), ["RequestLimitExceeded"; 2]);
    world.pass(10);
    assert_eq!(world.launch(200, "").len(), 20);
}

#[test]
fn a_template_has_versions_that_inherit_and_a_default() {
    let mut world = World::simple();
    world.template();
    let name = "LaunchTemplateName=tpl";
    let candidate = image_id(REGION, "candidate");
    let answer = world
        .call(&format!("Action=CreateLaunchTemplateVersion&{name}&SourceVersion=1&LaunchTemplateData.ImageId={candidate}"))
        .unwrap();
    assert_eq!(values(&answer, "versionNumber"), ["2"]);
    assert_eq!(values(&answer, "imageId"), [candidate]);
    assert_eq!(values(&answer, "userData"), ["e30="]);
    assert_eq!(values(&answer, "defaultVersion"), ["false"]);
    let answer = world
        .call(&format!(
            "Action=ModifyLaunchTemplate&{name}&SetDefaultVersion=2"
        ))
        .unwrap();
    assert_eq!(values(&answer, "defaultVersionNumber"), ["2"]);
    let answer = world
        .call(&format!(
            "Action=DescribeLaunchTemplateVersions&{name}&LaunchTemplateVersion.1=$Default"
        ))
        .unwrap();
    assert_eq!(values(&answer, "versionNumber"), ["2"]);
    assert_eq!(
        values(&answer, "tagSpecificationSet"),
        [
            "<item><resourceType>instance</resourceType><tagSet><item><key>from</key><value>template</value></item></tagSet></item>"
        ]
    );
    assert_eq!(
        world.code(&format!(
            "Action=ModifyLaunchTemplate&{name}&SetDefaultVersion=3"
        )),
        "InvalidLaunchTemplateId.VersionNotFound"
    );
    world
        .call(&format!("Action=DeleteLaunchTemplate&{name}"))
        .unwrap();
    let codes = [
        "DescribeLaunchTemplates&LaunchTemplateName.1=tpl",
        "DeleteLaunchTemplate&LaunchTemplateName=tpl",
    ];
    for form in codes {
        assert_eq!(
            world.code(&format!("Action={form}")),
            "InvalidLaunchTemplateName.NotFoundException"
        );
    }
}

#[test]
fn a_template_name_is_taken_once_and_its_token_answers_again() {
    let mut world = World::simple();
    let form = "Action=CreateLaunchTemplate&LaunchTemplateName=one&LaunchTemplateData.InstanceType=c5.large&ClientToken=t";
    let first = world.call(form).unwrap();
    assert_eq!(world.call(form).unwrap(), first);
    let other = form.replace("ClientToken=t", "ClientToken=u");
    assert_eq!(
        world.code(&other),
        "InvalidLaunchTemplateName.AlreadyExistsException"
    );
}

#[test]
fn user_data_is_base64_of_sixteen_kibibytes_at_most() {
    let mut world = World::simple();
    let mut code = |size: usize| {
        use base64::Engine as _;
        let data = base64::engine::general_purpose::STANDARD_NO_PAD.encode("x".repeat(size));
        let form = format!(
            "Action=CreateLaunchTemplate&LaunchTemplateName=n{size}&LaunchTemplateData.UserData={data}%3D%3D"
        );
        world.call(&form).map(drop).map_err(|error| error.code)
    };
    // Sizes that leave two bytes, so that the padding is right.
    assert_eq!(code(16 * 1024), Ok(()));
    assert_eq!(code(16 * 1024 + 3), Err("InvalidParameterValue".to_owned()));
    assert_eq!(
        code(16 * 1024 - 1),
        Err("InvalidUserData.Malformed".to_owned())
    );
}

#[test]
fn a_deleted_image_is_absent_and_asking_for_it_an_error() {
    let mut world = World::simple();
    let (stable, candidate) = (image_id(REGION, "stable"), image_id(REGION, "candidate"));
    let by_id = format!("Action=DescribeImages&ImageId.1={candidate}");
    world.call(&by_id).unwrap();
    world
        .ec2
        .deregister_image(world.now, REGION, &candidate)
        .unwrap();
    assert_eq!(world.code(&by_id), "InvalidAMIID.NotFound");
    let answer = world.call("Action=DescribeImages&Owner.1=self").unwrap();
    assert_eq!(values(&answer, "imageId"), [stable]);
}

#[test]
fn spot_prices_are_filtered_by_time_type_zone_and_product() {
    let mut world = World::simple();
    let count = |world: &mut World, form: &str| {
        let answer = world
            .call(&format!("Action=DescribeSpotPriceHistory{form}"))
            .unwrap();
        values(&answer, "spotPrice").len()
    };
    let now = "&StartTime=2026-01-01T00:00:00Z&EndTime=2026-01-01T00:00:00Z";
    let one =
        "&InstanceType.1=c5.large&ProductDescription.1=Linux/UNIX&AvailabilityZone=us-east-1a";
    assert_eq!(count(&mut world, &format!("{now}{one}")), 1);
    assert_eq!(
        count(
            &mut world,
            &format!("{now}&InstanceType.1=c5.large&ProductDescription.1=Linux/UNIX")
        ),
        6
    );
    assert_eq!(
        count(&mut world, &format!("{now}&InstanceType.1=c5.large")),
        24
    );
    let hours = "&StartTime=2025-12-31T20:30:00Z&EndTime=2026-01-01T00:00:00Z";
    assert_eq!(count(&mut world, &format!("{hours}{one}")), 5);
    let answer = world
        .call(&format!("Action=DescribeSpotPriceHistory{hours}{one}"))
        .unwrap();
    assert!(values(&answer, "timestamp").is_sorted_by(|left, right| left > right));
    assert_eq!(count(&mut world, ""), 1000, "a page when none is asked for");
    world
        .ec2
        .set_price(world.now, "us-east-1a", "c5.large", 0.0123)
        .unwrap();
    let answer = world
        .call(&format!("Action=DescribeSpotPriceHistory{now}{one}"))
        .unwrap();
    assert_eq!(values(&answer, "spotPrice"), ["0.012300"]);
}

#[test]
fn status_checks_initialise_pass_and_fail() {
    let mut world = World::new(Settings::default());
    let id = world.template().launch(1, "").remove(0);
    let status = |world: &mut World| {
        let answer = world
            .call("Action=DescribeInstanceStatus&MaxResults=5")
            .unwrap();
        values(&answer, "systemStatus")
            .iter()
            .map(|status| values(status, "status")[0].clone())
            .collect::<Vec<_>>()
    };
    world.pass(5);
    assert!(
        status(&mut world).is_empty(),
        "only running instances are described"
    );
    let all = world
        .call("Action=DescribeInstanceStatus&IncludeAllInstances=true&MaxResults=5")
        .unwrap();
    assert_eq!(values(&all, "details"), ["", ""], "nothing was checked yet");
    world.pass(10);
    assert_eq!(status(&mut world), ["initializing"]);
    world.pass(60);
    assert_eq!(status(&mut world), ["ok"]);
    world.ec2.set_impaired(&id, true).unwrap();
    assert_eq!(status(&mut world), ["impaired"]);
}

#[test]
fn zones_regions_offerings_and_groups_are_those_of_the_settings() {
    let mut settings = Settings {
        throttle: 0.0,
        ..Settings::default()
    };
    let region = settings.regions.get_mut(REGION).unwrap();
    region
        .not_offered
        .push(("c5.large".to_owned(), "us-east-1f".to_owned()));
    let mut world = World::new(settings);
    let zones = world.call("Action=DescribeAvailabilityZones").unwrap();
    assert_eq!(values(&zones, "zoneName").len(), 6);
    let regions = world.call("Action=DescribeRegions").unwrap();
    assert_eq!(
        values(&regions, "regionName"),
        ["eu-central-1", "us-east-1", "us-west-2"]
    );
    let form = "Action=DescribeInstanceTypeOfferings&LocationType=availability-zone&Filter.1.Name=instance-type&Filter.1.Value.1=c5.large";
    assert_eq!(values(&world.call(form).unwrap(), "location").len(), 5);
    let groups = world.call("Action=DescribeSecurityGroups").unwrap();
    assert_eq!(values(&groups, "groupName"), ["default"]);
    assert_eq!(
        world.code("Action=DescribeSecurityGroups&GroupId.1=sg-0123456789abcdef0"),
        "InvalidGroup.NotFound"
    );
    let place = format!("&{CONFIG}.Overrides.1.AvailabilityZone=us-east-1f");
    let answer = world.template().call(&fleet(1, &place)).unwrap();
    assert_eq!(values(&answer, "errorCode"), ["Unsupported"]);
}

#[test]
fn callers_are_known_by_key_and_their_clock() {
    let mut settings = Settings::default();
    settings
        .access_keys
        .insert("AKGOOD".to_owned(), "999999999999".to_owned());
    let mut ec2 = Ec2::new(settings);
    let wall: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let caller = |key: &str, signed_at: &str| Caller {
        access_key: key.to_owned(),
        region: REGION.to_owned(),
        signed_at: Some(signed_at.parse().unwrap()),
    };
    let early = "2025-12-31T23:54:59Z";
    assert_eq!(
        ec2.authenticate(wall, &caller("AKGOOD", early)),
        Ok("999999999999".to_owned())
    );
    let error = ec2.authenticate(wall, &caller("AKBAD", early)).unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (401, "AuthFailure"));
    ec2.set_clock_check(Some(SignedDuration::ZERO));
    assert_eq!(
        ec2.authenticate(wall, &caller("AKGOOD", early))
            .unwrap_err()
            .code,
        "RequestExpired"
    );
    let edge = caller("AKGOOD", "2025-12-31T23:55:00Z");
    assert!(ec2.authenticate(wall, &edge).is_ok());
    ec2.set_clock_check(Some(SignedDuration::from_secs(1)));
    assert!(ec2.authenticate(wall, &edge).is_err());
    ec2.set_clock_check(None);
    ec2.set_credentials(false);
    assert_eq!(
        ec2.authenticate(wall, &edge).unwrap_err().code,
        "AuthFailure"
    );
}

#[test]
fn accounts_and_regions_do_not_see_each_other() {
    let mut world = World::simple();
    world.template().launch(1, "");
    let params = Params::parse("Action=DescribeInstances&MaxResults=5");
    let mut ids = |region: &str, account: &str| {
        let answer = world.ec2.call(world.now, region, account, &params).unwrap();
        values(&answer.document(), "instanceId").len()
    };
    assert_eq!(ids(REGION, ACCOUNT), 1);
    assert_eq!(ids("us-west-2", ACCOUNT), 0);
    assert_eq!(ids(REGION, "999999999999"), 0);
}

#[test]
fn a_foreign_instance_is_simply_there() {
    let mut world = World::new(Settings::default());
    let tags = BTreeMap::from([("Name".to_owned(), "golden".to_owned())]);
    let id = world
        .ec2
        .add_foreign_instance(world.now, REGION, tags)
        .unwrap();
    let form = "Action=DescribeInstances&Filter.1.Name=tag:Name&Filter.1.Value.1=golden";
    assert_eq!(
        values(&world.call(form).unwrap(), "instanceId"),
        std::slice::from_ref(&id)
    );
    world.terminate(std::slice::from_ref(&id)).unwrap();
    world.pass(31);
    assert_eq!(world.state(&id), Some(State::Terminated));
}

/// What can happen to a fleet of machines.
#[derive(Clone, Debug)]
enum Step {
    Launch {
        count: u32,
        on_demand: bool,
        token: u8,
    },
    Terminate {
        which: usize,
    },
    Interrupt {
        which: usize,
        after: i64,
    },
    Pass {
        seconds: i64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5_u32, any::<bool>(), 0..6_u8).prop_map(|(count, on_demand, token)| Step::Launch {
            count,
            on_demand,
            token
        }),
        any::<usize>().prop_map(|which| Step::Terminate { which }),
        (any::<usize>(), 0..300_i64).prop_map(|(which, after)| Step::Interrupt { which, after }),
        (0..200_i64).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

proptest! {
    /// Whatever happens: machines, addresses and vCPUs that are not free belong to instances that are
    /// not terminated, a token launches once, and nothing grows beyond what there is.
    #[test]
    fn nothing_is_lost_or_made_from_nothing(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new(Settings {
            capacity: 4,
            spot_vcpus: 12,
            throttle: 0.0,
            ..Settings::default()
        });
        world.template();
        let mut launched_by_token = BTreeMap::new();
        for step in steps {
            match step {
                Step::Launch { count, on_demand, token } => {
                    let kind = if on_demand { "OnDemand" } else { "Spot" };
                    let more = format!(
                        "&TargetCapacitySpecification.{kind}TargetCapacity={count}&ClientToken={token}"
                    );
                    // A token that was used for something else is a mismatch, which launches nothing.
                    let before = world.ec2.instances().count();
                    match world.call(&fleet(count, &more)) {
                        Ok(answer) => {
                            let ids = texts(&answer, "instanceIds");
                            let is_new = !launched_by_token.contains_key(&token);
                            let expected = before + if is_new { ids.len() } else { 0 };
                            prop_assert_eq!(world.ec2.instances().count(), expected);
                            prop_assert_eq!(launched_by_token.entry(token).or_insert_with(|| ids.clone()), &ids);
                        }
                        Err(error) => {
                            prop_assert_eq!(error.code, "IdempotentParameterMismatch");
                            prop_assert_eq!(world.ec2.instances().count(), before);
                        }
                    }
                }
                Step::Terminate { which } => {
                    let ids: Vec<_> = world.ec2.instances().map(|instance| instance.id.clone()).collect();
                    if !ids.is_empty() {
                        // Too young to be visible, or long forgotten: a refusal that changes nothing.
                        drop(world.terminate(&ids[which % ids.len()..][..1]));
                    }
                }
                Step::Interrupt { which, after } => {
                    let ids: Vec<_> = world.ec2.instances().map(|instance| instance.id.clone()).collect();
                    if !ids.is_empty() {
                        let from = world.now + SignedDuration::from_secs(after);
                        drop(world.ec2.interrupt(&ids[which % ids.len()], from));
                    }
                }
                Step::Pass { seconds } => world.pass(seconds),
            }
            world.ec2.settle(world.now);
            check_books(&world)?;
        }
    }
}

fn check_books(world: &World) -> Result<(), TestCaseError> {
    let Some(region) = world.ec2.regions.values().next() else {
        return Ok(());
    };
    let settings = world.ec2.settings();
    let is_held = |instance: &&Instance| {
        let state = instance.state(world.now, &settings.timing);
        !matches!(state, None | Some(State::Terminated))
    };
    let is_taken_back = |instance: &&Instance| {
        let end = instance.end.as_ref();
        end.is_some_and(|end| {
            end.code == "Server.SpotInstanceTermination" && end.terminated_at <= world.now
        })
    };
    for capacity_type in [CapacityType::Spot, CapacityType::OnDemand] {
        let quota = match capacity_type {
            CapacityType::Spot => settings.spot_vcpus,
            CapacityType::OnDemand => settings.on_demand_vcpus,
        };
        let of_type = |instance: &&Instance| instance.capacity_type == capacity_type;
        let held = region.instances.values().filter(of_type).filter(is_held);
        let vcpus: u32 = held.map(|instance| instance.vcpus).sum();
        prop_assert_eq!(region.free_vcpus(capacity_type), quota - vcpus);
        for zone in ["us-east-1a", "us-east-1b"] {
            let here = region
                .instances
                .values()
                .filter(of_type)
                .filter(|instance| instance.zone == zone);
            let gone = here.filter(|instance| is_held(instance) || is_taken_back(instance));
            let pool = Pool {
                instance_type: "c5.large".to_owned(),
                zone: zone.to_owned(),
                capacity_type,
            };
            prop_assert_eq!(region.free(settings, &pool) as usize, 4 - gone.count());
        }
    }
    for (id, subnet) in &region.subnets {
        let here = region
            .instances
            .values()
            .filter(|instance| instance.subnet == *id);
        prop_assert_eq!(subnet.free as usize, 4091 - here.filter(is_held).count());
    }
    Ok(())
}
