//! The fake EC2 against moto: two imitations that do not know one another must agree on what both of
//! them imitate.
//!
//! Both get the same requests, byte for byte but for ids that they made themselves. What the fake
//! answers must be in moto's answer too: every element, its place and its text, with ids, times and
//! addresses masked. moto may say more. Where moto is known to differ from EC2, [`MOTO_DIFFERS`] names the
//! element and what EC2 does, and the fake is held to that instead.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use farm_tests::ec2::{
    FakeEc2, ImageSetting, RegionSetting, Settings, SubnetSetting, Timing, image_id,
};
use farm_tests::process::Process;
use farm_tests::programs;
use farm_tests::services::Moto;
use reqwest::blocking::Client;
use tempfile::TempDir;

const REGION: &str = "us-east-1";

/// For what is a matter of milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(20);

/// Everything else happens at once, as with moto.
const SHUTTING_DOWN: Duration = Duration::from_secs(1);

/// An element in which moto differs from EC2.
struct Difference {
    /// The step it shows in; `*` for all.
    step: &'static str,
    /// The end of the path of the element; with `*` at its end any part of the path.
    element: &'static str,
    /// What EC2 does, with its source, and what moto does.
    fact: &'static str,
}

/// Where moto is known to differ from EC2. Each entry must show, or the test fails: moto may have learnt.
const MOTO_DIFFERS: &[Difference] = &[
    Difference {
        step: "zones",
        element: "/optInStatus",
        fact: "`AvailabilityZone` has `OptInStatus`, `opt-in-not-required` for every ordinary zone (EC2 API Reference); moto leaves it out",
    },
    Difference {
        step: "prices",
        element: "/spotPrice",
        fact: "prices follow supply and demand; moto always says 0.00001",
    },
    Difference {
        step: "prices",
        element: "/productDescription",
        fact: "a filter `Linux/UNIX` shows `Linux/UNIX` (`DescribeSpotPriceHistory`, EC2 API Reference); moto ignores the filter and has another product",
    },
    Difference {
        step: "prices",
        element: "/spotPriceHistorySet/length",
        fact: "`AvailabilityZone` selects (same page); moto ignores the parameter",
    },
    Difference {
        step: "versions",
        element: "item[1 1]/launchTemplateData/tagSpecificationSet/length",
        fact: "tags of a template are not among the tags its instances get (\"Tag an existing launch template\", EC2 User Guide); moto shows them there",
    },
    Difference {
        step: "unknown action",
        element: "status",
        fact: "400 (\"Common client errors\", EC2 Developer Guide); moto fails",
    },
    Difference {
        step: "unknown action",
        element: "/Code",
        fact: "`InvalidAction` (same page); moto fails",
    },
    Difference {
        step: "unknown template id",
        element: "status",
        fact: "a template asked for by id must exist (\"Error codes\", EC2 Developer Guide); moto answers with an empty list, though not for names",
    },
    Difference {
        step: "unknown template id",
        element: "/Code",
        fact: "`InvalidLaunchTemplateId.NotFound` (same page)",
    },
    Difference {
        step: "inherit",
        element: "/launchTemplateData/*",
        fact: "a version inherits what it does not give from `SourceVersion` (`CreateLaunchTemplateVersion`, EC2 API Reference); moto's has only what was given",
    },
    Difference {
        step: "*",
        element: "/clientToken",
        fact: "a fleet gives its instances client tokens of its own; moto's have none",
    },
    Difference {
        step: "*",
        element: "/tagSet/item[aws:ec2:fleet-id*",
        fact: "EC2 tags instances of a fleet (\"Tag an EC2 Fleet\", EC2 User Guide); moto does not",
    },
    Difference {
        step: "*",
        element: "/tagSet/item[aws:ec2launchtemplate:*",
        fact: "EC2 tags instances launched from a template with its id and version (\"Launch instances from a launch template\", EC2 User Guide); moto does not",
    },
    Difference {
        step: "tag",
        element: "/return",
        fact: "`CreateTags` answers `true` (example of the EC2 API Reference); moto's answer is empty",
    },
    Difference {
        step: "untag",
        element: "/return",
        fact: "`DeleteTags` answers `true` (same)",
    },
    Difference {
        step: "terminated",
        element: "/reason",
        fact: "the time is in GMT (example of `TerminateInstances`); moto writes UTC",
    },
    Difference {
        step: "terminate again",
        element: "/currentState/*",
        fact: "what is terminated stays so (`TerminateInstances` is idempotent, EC2 API Reference); moto says it shuts down again",
    },
    Difference {
        step: "delete template",
        element: "/launchTemplate/*",
        fact: "the answer shows the whole template (example of `delete-launch-template`, AWS CLI Reference); moto's leaves most of it out",
    },
    Difference {
        step: "deleted template",
        element: "/Code",
        fact: "`InvalidLaunchTemplateName.NotFoundException` (\"Error codes\", EC2 Developer Guide); moto says `MissingParameter`",
    },
];

impl Difference {
    fn is_about(&self, path: &str) -> bool {
        match self.element.strip_suffix('*') {
            Some(part) => path.contains(part),
            None => path.ends_with(self.element),
        }
    }
}

/// One of the two.
struct Cloud {
    name: &'static str,
    url: String,
    client: Client,
    /// Ids it made, by the name the steps give them.
    made: BTreeMap<String, String>,
}

/// What came back.
struct Answer {
    status: u16,
    root: Element,
}

#[derive(Clone, Debug, Default)]
struct Element {
    name: String,
    text: String,
    children: Vec<Element>,
}

impl Cloud {
    fn new(name: &'static str, url: String) -> Self {
        let client = Client::builder()
            .no_proxy()
            .build()
            .expect("the settings are constant and valid");
        Self {
            name,
            url,
            client,
            made: BTreeMap::new(),
        }
    }

    /// Sends a request in which `{name}` stands for an id this cloud made.
    fn send(&self, form: &str) -> Answer {
        let mut form = format!("{form}&Version=2016-11-15");
        for (name, id) in &self.made {
            form = form.replace(&format!("{{{name}}}"), id);
        }
        let signature = format!(
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260101/{REGION}/ec2/aws4_request, SignedHeaders=content-type;host;x-amz-date, Signature=0000000000000000000000000000000000000000000000000000000000000000"
        );
        let response = self
            .client
            .post(format!("{}/", self.url))
            .header("authorization", signature)
            .header("x-amz-date", "20260101T000000Z")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        let status = response.status().as_u16();
        let text = response.text().expect("an answer on loopback is whole");
        // moto answers with a page for people when it has a fault of its own.
        let root = parse(&text).unwrap_or_default();
        Answer { status, root }
    }

    fn keep(&mut self, name: &str, id: &str) {
        self.made.insert(name.to_owned(), id.to_owned());
    }
}

impl Element {
    /// The texts of all elements of a name, at any depth, in order.
    fn all(&self, name: &str) -> Vec<&str> {
        let mut found = Vec::new();
        if self.name == name {
            found.push(self.text.as_str());
        }
        for child in &self.children {
            found.extend(child.all(name));
        }
        found
    }

    /// The text of the one element of a name.
    fn one(&self, name: &str) -> &str {
        match self.all(name).as_slice() {
            [one] => one,
            others => panic!("expected one `{name}`, found {others:?}"),
        }
    }
}

/// Reads XML without attributes that matter, as both clouds write it.
fn parse(text: &str) -> Option<Element> {
    let mut stack = vec![Element::default()];
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('<') {
        let (tag, after) = after.split_once('>')?;
        stack.last_mut()?.text.push_str(before.trim());
        rest = after;
        if tag.starts_with(['?', '!']) {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            let closed = stack.pop()?;
            if closed.name != name {
                return None;
            }
            stack.last_mut()?.children.push(closed);
            continue;
        }
        let is_empty = tag.ends_with('/');
        let name = tag.trim_end_matches('/').split_whitespace().next()?;
        let element = Element {
            name: name.to_owned(),
            ..Element::default()
        };
        if is_empty {
            stack.last_mut()?.children.push(element);
        } else {
            stack.push(element);
        }
    }
    let mut document = stack.pop()?;
    stack.is_empty().then_some(())?;
    document.children.pop()
}

/// Leaves by path. Items of a list get the name of what tells them apart, or their number.
fn leaves(element: &Element, path: &str, into: &mut BTreeMap<String, String>) {
    if element.children.is_empty() {
        // An empty list, or an empty text: to every SDK the same as none.
        if element.text.is_empty() {
            into.insert(format!("{path}/length"), "0".to_owned());
        } else {
            into.insert(path.to_owned(), mask(&element.text));
        }
        return;
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    // EC2's own tags are differences with a name; here they would hide others.
    let counts_as_item =
        |child: &&Element| child.name == "item" && !label(child).starts_with("aws:");
    let items = element.children.iter().filter(counts_as_item);
    into.insert(format!("{path}/length"), items.count().to_string());
    for child in &element.children {
        let mut place = format!("{path}/{}", child.name);
        if child.name == "item" {
            let label = label(child);
            let count = counts.entry(label.clone()).or_default();
            *count += 1;
            place = format!("{place}[{label} {count}]");
        }
        leaves(child, &place, into);
    }
}

/// What tells an item from its neighbours whatever their order.
fn label(item: &Element) -> String {
    let telling = [
        "key",
        "imageId",
        "availabilityZone",
        "zoneName",
        "versionNumber",
        "resourceType",
    ];
    let child = |name: &&str| item.children.iter().find(|child| child.name == **name);
    telling
        .iter()
        .find_map(child)
        .map(|child| child.text.clone())
        .unwrap_or_default()
}

fn mask(text: &str) -> String {
    let is_id = text.rsplit_once('-').is_some_and(|(prefix, digits)| {
        !prefix.is_empty()
            && digits.len() >= 8
            && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    let is_time = text.len() >= 20 && text.as_bytes()[10] == b'T' && text.ends_with('Z');
    let is_host = text.starts_with("ip-");
    let is_address = text.starts_with("172.") || text.starts_with("10.");
    match () {
        () if is_id => format!("{}-*", text.split('-').next().unwrap_or_default()),
        () if is_host => "a host name".to_owned(),
        () if is_time => "a time".to_owned(),
        () if is_address && !text.contains('/') => "an address".to_owned(),
        () => text.to_owned(),
    }
}

/// The two clouds and what they have been found to differ in.
struct Pair {
    fake: Cloud,
    moto: Cloud,
    faults: Vec<String>,
    seen: Vec<bool>,
}

impl Pair {
    fn new(fake: Cloud, moto: Cloud) -> Self {
        Self {
            fake,
            moto,
            faults: Vec::new(),
            seen: vec![false; MOTO_DIFFERS.len()],
        }
    }

    /// Gives an id that both have a name for the steps.
    fn keep(&mut self, name: &str, id: &str) {
        self.fake.keep(name, id);
        self.moto.keep(name, id);
    }

    /// Sends one request to both and compares.
    fn step(&mut self, step: &'static str, form: &str) -> (Answer, Answer) {
        let (ours, theirs) = (self.fake.send(form), self.moto.send(form));
        if ours.status != theirs.status {
            self.differ(
                step,
                "status",
                &ours.status.to_string(),
                Some(&theirs.status.to_string()),
            );
        }
        let (mut our_leaves, mut their_leaves) = (BTreeMap::new(), BTreeMap::new());
        leaves(&ours.root, &ours.root.name, &mut our_leaves);
        leaves(&theirs.root, &theirs.root.name, &mut their_leaves);
        for (path, text) in our_leaves {
            // Sentences for people are free; the id of a request is nobody's business.
            let is_free = ["requestId", "RequestID", "Message", "errorMessage"]
                .iter()
                .any(|free| path.ends_with(free));
            let their_text = their_leaves.get(&path);
            let none_here_and_there =
                text == "0" && path.ends_with("/length") && their_text.is_none();
            if !is_free && !none_here_and_there && their_text != Some(&text) {
                self.differ(step, &path, &text, their_text.map(String::as_str));
            }
        }
        (ours, theirs)
    }

    fn differ(&mut self, step: &str, path: &str, ours: &str, theirs: Option<&str>) {
        let known = MOTO_DIFFERS
            .iter()
            .position(|known| (known.step == "*" || known.step == step) && known.is_about(path));
        if let Some(known) = known {
            self.seen[known] = true;
        } else {
            let fault = format!("{step}: {path}\n    fake {ours:?}\n    moto {theirs:?}");
            self.faults.push(fault);
        }
    }
}

/// A fake with the subnets, images and groups that moto's default network has.
fn fake_like(moto: &Cloud, images: &[(String, String)]) -> FakeEc2 {
    let subnets = moto.send("Action=DescribeSubnets").root;
    let column =
        |name: &str| -> Vec<String> { subnets.all(name).into_iter().map(str::to_owned).collect() };
    let rows = column("subnetId")
        .into_iter()
        .zip(column("availabilityZone"))
        .zip(column("cidrBlock"));
    let subnets = rows.map(|((id, zone), cidr)| SubnetSetting {
        id,
        zone,
        cidr,
        addresses: 4091,
    });
    let groups = moto.send("Action=DescribeSecurityGroups").root;
    let images = images.iter().map(|(id, name)| ImageSetting {
        id: id.clone(),
        name: name.clone(),
        tags: BTreeMap::new(),
    });
    let region = RegionSetting {
        zones: column("availabilityZone"),
        subnets: subnets.collect(),
        images: images.collect(),
        security_groups: BTreeMap::from([("default".to_owned(), groups.one("groupId").to_owned())]),
        // moto knows what EC2 sells where.
        not_offered: vec![("c5.large".to_owned(), "us-east-1e".to_owned())],
    };
    FakeEc2::start(Settings {
        regions: BTreeMap::from([(REGION.to_owned(), region)]),
        timing: Timing {
            shutting_down_for: SHUTTING_DOWN,
            ..Timing::immediate()
        },
        ..Settings::stepped()
    })
}

/// A request for an instant fleet of spot instances with two overrides: other zones, images and
/// types.
fn fleet(count: u32, pool: &str) -> String {
    let config = "LaunchTemplateConfigs.1";
    format!(
        "Action=CreateFleet&Type=instant\
         &SpotOptions.AllocationStrategy=lowest-price\
         &TargetCapacitySpecification.TotalTargetCapacity={count}\
         &TargetCapacitySpecification.DefaultTargetCapacityType=spot\
         &{config}.LaunchTemplateSpecification.LaunchTemplateName=linux\
         &{config}.LaunchTemplateSpecification.Version=$Default\
         &{config}.Overrides.1.InstanceType=c5.large&{config}.Overrides.1.SubnetId={{subnet-a}}&{config}.Overrides.1.ImageId={{candidate}}\
         &{config}.Overrides.2.InstanceType=c5.2xlarge&{config}.Overrides.2.SubnetId={{subnet-b}}&{config}.Overrides.2.ImageId={{candidate}}\
         &TagSpecification.1.ResourceType=instance\
         &TagSpecification.1.Tag.1.Key=pool&TagSpecification.1.Tag.1.Value={pool}\
         &TagSpecification.1.Tag.2.Key=intent&TagSpecification.1.Tag.2.Value=i%3D1%262"
    )
}

#[test]
fn the_fake_ec2_and_moto_agree_on_their_common_ground() {
    let images: Vec<_> = ["stable", "candidate"]
        .map(|name| (image_id(REGION, name), name.to_owned()))
        .into();
    let server = Moto::start(&images);
    let moto = Cloud::new("moto", server.url());
    let running = fake_like(&moto, &images);
    // moto takes the first override; the fake is to find it the cheapest.
    let cheap = running.with(|ec2, now| ec2.set_price(now, "us-east-1a", "c5.large", 0.01));
    assert_eq!(cheap, Ok(()));
    let fake = Cloud::new("fake", running.url());
    let mut pair = Pair::new(fake, moto);
    for (id, name) in &images {
        pair.keep(name, id);
    }
    network(&mut pair);
    templates(&mut pair);
    launches(&mut pair, &running);
    dry_runs(&mut pair);
    let faults = pair.faults;
    assert!(faults.is_empty(), "they differ:\n{}", faults.join("\n"));
    for (known, seen) in MOTO_DIFFERS.iter().zip(pair.seen) {
        let Difference {
            step,
            element,
            fact,
        } = known;
        assert!(seen, "{step} {element}: moto no longer differs ({fact})");
    }
}

fn network(pair: &mut Pair) {
    let (subnets, _) = pair.step("subnets", "Action=DescribeSubnets");
    let zones = subnets.root.all("availabilityZone");
    let by_zone: BTreeMap<_, _> = zones
        .into_iter()
        .zip(subnets.root.all("subnetId"))
        .collect();
    assert_eq!(by_zone.len(), 6);
    for (name, zone) in [("subnet-a", "us-east-1a"), ("subnet-b", "us-east-1b")] {
        pair.keep(name, by_zone[zone]);
    }
    pair.step("one subnet", "Action=DescribeSubnets&SubnetId.1={subnet-a}");
    pair.step(
        "unknown subnet",
        "Action=DescribeSubnets&SubnetId.1=subnet-0123456789abcdef0",
    );
    pair.step(
        "images",
        "Action=DescribeImages&ImageId.1={stable}&ImageId.2={candidate}",
    );
    pair.step(
        "image by name",
        "Action=DescribeImages&Filter.1.Name=name&Filter.1.Value.1=cand*",
    );
    pair.step(
        "unknown image",
        "Action=DescribeImages&ImageId.1=ami-0123456789abcdef0",
    );
    pair.step("zones", "Action=DescribeAvailabilityZones");
    pair.step("region", "Action=DescribeRegions&RegionName.1=us-east-1");
    pair.step("groups", "Action=DescribeSecurityGroups");
    pair.step(
        "unknown group",
        "Action=DescribeSecurityGroups&GroupId.1=sg-0123456789abcdef0",
    );
    let offerings = "Action=DescribeInstanceTypeOfferings&LocationType=availability-zone";
    let of_type = format!("{offerings}&Filter.1.Name=instance-type&Filter.1.Value.1=c5.large");
    pair.step("offerings", &of_type);
    let prices =
        "Action=DescribeSpotPriceHistory&InstanceType.1=c5.large&AvailabilityZone=us-east-1a";
    let now = "StartTime=2126-01-01T00:00:00Z";
    pair.step(
        "prices",
        &format!("{prices}&{now}&ProductDescription.1=Linux%2FUNIX"),
    );
    pair.step("unknown action", "Action=MakeCoffee");
}

fn templates(pair: &mut Pair) {
    let create = "Action=CreateLaunchTemplate&LaunchTemplateName=linux\
        &LaunchTemplateData.ImageId={stable}&LaunchTemplateData.InstanceType=c5.large\
        &LaunchTemplateData.UserData=e30%3D\
        &LaunchTemplateData.SecurityGroupId.1=sg-12345678\
        &LaunchTemplateData.TagSpecification.1.ResourceType=instance\
        &LaunchTemplateData.TagSpecification.1.Tag.1.Key=owner&LaunchTemplateData.TagSpecification.1.Tag.1.Value=farm\
        &TagSpecification.1.ResourceType=launch-template&TagSpecification.1.Tag.1.Key=owner&TagSpecification.1.Tag.1.Value=farm";
    let create = create.replace("sg-12345678", "{group}");
    let (groups, _) = pair.step("groups again", "Action=DescribeSecurityGroups");
    let group = groups.root.one("groupId").to_owned();
    pair.keep("group", &group);
    pair.step("create template", &create);
    pair.step("create template again", &create);
    let whole = create
        .replace("CreateLaunchTemplate&", "CreateLaunchTemplateVersion&")
        .replace("{stable}", "{candidate}");
    // Tags of the template are no matter of its versions.
    let whole = whole.split("&TagSpecification.").next().unwrap_or_default();
    pair.step("create version", whole);
    pair.step(
        "default version",
        "Action=ModifyLaunchTemplate&LaunchTemplateName=linux&SetDefaultVersion=2",
    );
    pair.step(
        "templates",
        "Action=DescribeLaunchTemplates&LaunchTemplateName.1=linux",
    );
    pair.step(
        "versions",
        "Action=DescribeLaunchTemplateVersions&LaunchTemplateName=linux",
    );
    pair.step("one version", "Action=DescribeLaunchTemplateVersions&LaunchTemplateName=linux&LaunchTemplateVersion.1=$Default");
    let version = "Action=CreateLaunchTemplateVersion&LaunchTemplateName=linux&SourceVersion=1&LaunchTemplateData.ImageId={candidate}";
    pair.step("inherit", version);
    pair.step(
        "unknown template",
        "Action=DescribeLaunchTemplates&LaunchTemplateName.1=nobody",
    );
    pair.step(
        "unknown template id",
        "Action=DescribeLaunchTemplates&LaunchTemplateId.1=lt-0123456789abcdef0",
    );
    pair.step(
        "fleet of unknown template",
        &fleet(1, "linux").replace("TemplateName=linux", "TemplateName=nobody"),
    );
}

fn launches(pair: &mut Pair, running: &FakeEc2) {
    let (ours, theirs) = pair.step("fleet", &fleet(1, "linux"));
    for (cloud, answer) in [(&mut pair.fake, &ours), (&mut pair.moto, &theirs)] {
        let id = instance_ids(&answer.root).remove(0);
        cloud.keep("instance", &id);
    }
    pair.step("by id", "Action=DescribeInstances&InstanceId.1={instance}");
    let by_tag = "Action=DescribeInstances&Filter.1.Name=tag:pool&Filter.1.Value.1";
    let state =
        "Filter.2.Name=instance-state-name&Filter.2.Value.1=pending&Filter.2.Value.2=running";
    pair.step("by tag", &format!("{by_tag}=linux&{state}"));
    pair.step("by pattern", &format!("{by_tag}=lin*"));
    pair.step("by another tag", &format!("{by_tag}=windows"));
    pair.step(
        "by tag key",
        "Action=DescribeInstances&Filter.1.Name=tag-key&Filter.1.Value.1=intent",
    );
    pair.step(
        "by image",
        "Action=DescribeInstances&Filter.1.Name=image-id&Filter.1.Value.1={candidate}",
    );
    pair.step(
        "unknown id",
        "Action=DescribeInstances&InstanceId.1=i-0123456789abcdef0",
    );
    pair.step(
        "status",
        "Action=DescribeInstanceStatus&InstanceId.1={instance}",
    );
    pair.step(
        "tag",
        "Action=CreateTags&ResourceId.1={instance}&Tag.1.Key=hold&Tag.1.Value=ada",
    );
    pair.step(
        "tagged",
        "Action=DescribeInstances&Filter.1.Name=tag:hold&Filter.1.Value.1=ada",
    );
    pair.step(
        "untag",
        "Action=DeleteTags&ResourceId.1={instance}&Tag.1.Key=hold",
    );
    pair.step(
        "untagged",
        "Action=DescribeInstances&Filter.1.Name=tag:hold&Filter.1.Value.1=ada",
    );
    pair.step(
        "one bad id",
        "Action=TerminateInstances&InstanceId.1={instance}&InstanceId.2=i-0123456789abcdef0",
    );
    pair.step("still there", &format!("{by_tag}=linux&{state}"));
    pages(pair);
    pair.step(
        "terminate",
        "Action=TerminateInstances&InstanceId.1={instance}",
    );
    running.advance(SHUTTING_DOWN);
    pair.step(
        "terminated",
        "Action=DescribeInstances&InstanceId.1={instance}",
    );
    pair.step(
        "terminate again",
        "Action=TerminateInstances&InstanceId.1={instance}",
    );
    pair.step(
        "delete template",
        "Action=DeleteLaunchTemplate&LaunchTemplateName=linux",
    );
    pair.step(
        "deleted template",
        "Action=DeleteLaunchTemplate&LaunchTemplateName=linux",
    );
}

/// Six instances of six launches, because moto's pages count launches.
fn pages(pair: &mut Pair) {
    let mut launched = [Vec::new(), Vec::new()];
    for _ in 0..6 {
        let (ours, theirs) = pair.step("fleet of a page", &fleet(1, "paged"));
        launched[0].extend(instance_ids(&ours.root));
        launched[1].extend(instance_ids(&theirs.root));
    }
    let form =
        "Action=DescribeInstances&MaxResults=5&Filter.1.Name=tag:pool&Filter.1.Value.1=paged";
    for (cloud, mut launched) in [&pair.fake, &pair.moto].into_iter().zip(launched) {
        let first = cloud.send(form).root;
        let token = first.one("nextToken");
        let second = cloud.send(&format!("{form}&NextToken={token}")).root;
        assert_eq!(first.all("instanceId").len(), 5, "{}", cloud.name);
        assert!(
            second.all("nextToken").iter().all(|token| token.is_empty()),
            "{}",
            cloud.name
        );
        let mut seen = [first.all("instanceId"), second.all("instanceId")].concat();
        seen.sort_unstable();
        launched.sort_unstable();
        assert_eq!(seen, launched, "{}", cloud.name);
    }
}

fn dry_runs(pair: &mut Pair) {
    pair.step("dry template", "Action=CreateLaunchTemplate&LaunchTemplateName=dry&LaunchTemplateData.InstanceType=c5.large&DryRun=true");
    pair.step("dry run", "Action=RunInstances&ImageId={stable}&InstanceType=c5.large&MinCount=1&MaxCount=1&DryRun=true");
    pair.step(
        "dry termination",
        "Action=TerminateInstances&InstanceId.1={instance}&DryRun=true",
    );
    pair.step("dry description", "Action=DescribeInstances&DryRun=true");
}

/// The ids in the answer to a launch.
fn instance_ids(answer: &Element) -> Vec<String> {
    if answer.name == "instanceIds" {
        return answer.all("item").into_iter().map(str::to_owned).collect();
    }
    answer.children.iter().flat_map(instance_ids).collect()
}

#[test]
fn the_program_prints_its_address_answers_and_ends_when_asked() {
    let directory = TempDir::with_prefix("farm-fake-ec2-").unwrap();
    let log = directory.path().join("output");
    let program = programs::ours("fake-ec2");
    let settings = directory.path().join("settings.json");
    fs_err::write(&settings, r#"{"account": "999999999999"}"#).unwrap();
    let arguments = ["--settings", settings.to_str().unwrap()];
    let mut process = Process::start(&program, arguments, directory.path(), &log);
    let url = process.ready(SOON, || {
        let output = fs_err::read_to_string(&log).unwrap();
        output.strip_suffix('\n').map(str::to_owned).ok_or(output)
    });
    let cloud = Cloud::new("the program", url);
    let answer = cloud.send("Action=DescribeImages&Owner.1=self");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.root.all("imageOwnerId"), ["999999999999"; 2]);
    assert!(process.stop().success());
}

#[test]
fn the_program_says_what_is_wrong_with_its_settings_or_its_arguments() {
    let directory = TempDir::with_prefix("farm-fake-ec2-").unwrap();
    let settings = directory.path().join("settings.json");
    fs_err::write(&settings, r#"{"throtle": 0}"#).unwrap();
    let settings = settings.to_str().unwrap();
    let cases = [
        (
            vec!["--settings", settings],
            78,
            "unknown field `throtle`, expected one of",
        ),
        (vec!["--settings", "/nonexistent"], 78, "/nonexistent"),
        (vec!["--prot", "80"], 64, "--prot"),
        (vec!["--print-settings"], 0, "\"visible_after\": \"2s\""),
    ];
    for (arguments, code, expected) in cases {
        let output = Command::new(programs::ours("fake-ec2"))
            .args(&arguments)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}
