//! The edge as a client sees it.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::blocking::{Client, RequestBuilder, Response};

use super::*;
use crate::ec2::{FakeEc2, Fault};
use crate::wait;

const SOON: Duration = Duration::from_secs(20);

fn fake() -> FakeEc2 {
    let fake = FakeEc2::start(Settings::stepped());
    let params = "Action=CreateLaunchTemplate&LaunchTemplateName=tpl&LaunchTemplateData.InstanceType=c5.large";
    let image = crate::ec2::image_id("us-east-1", "stable");
    let made = request(
        &fake,
        &format!("{params}&LaunchTemplateData.ImageId={image}"),
    )
    .send()
    .unwrap();
    assert_eq!(made.status(), 200);
    fake
}

fn request(fake: &FakeEc2, form: &str) -> RequestBuilder {
    let credential = "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0";
    Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .post(fake.url())
        .header("authorization", credential)
        .body(form.to_owned())
}

const LAUNCH: &str = "Action=CreateFleet&Type=instant&ClientToken=t&TargetCapacitySpecification.TotalTargetCapacity=1\
    &LaunchTemplateConfigs.1.LaunchTemplateSpecification.LaunchTemplateName=tpl\
    &LaunchTemplateConfigs.1.LaunchTemplateSpecification.Version=1";

fn launch(fake: &FakeEc2) -> reqwest::Result<Response> {
    request(fake, LAUNCH).send()
}

fn strike(fake: &FakeEc2, point: Point, effect: Effect) {
    fake.control(Command::Fault(Fault {
        action: "CreateFleet".to_owned(),
        region: None,
        times: 1,
        point,
        effect,
    }));
}

fn error(code: &str, status: u16) -> Effect {
    Effect::Error {
        code: code.to_owned(),
        status,
    }
}

#[test]
fn an_error_before_leaves_nothing_and_one_after_leaves_the_launch() {
    let fake = fake();
    strike(&fake, Point::Before, error("Unavailable", 503));
    let answer = launch(&fake).unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.text().unwrap().contains("<Code>Unavailable</Code>"));
    assert_eq!(fake.instances().len(), 0);
    strike(&fake, Point::After, error("InternalError", 500));
    assert_eq!(launch(&fake).unwrap().status(), 500);
    assert_eq!(fake.instances().len(), 1);
    // The same token again learns what was done.
    let answer = launch(&fake).unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.text().unwrap().contains(&fake.instances()[0].id));
    assert_eq!((fake.instances().len(), fake.count("CreateFleet")), (1, 3));
}

#[test]
fn a_dropped_connection_is_no_answer_and_before_or_after_makes_the_difference() {
    let fake = fake();
    strike(&fake, Point::Before, Effect::Drop);
    assert!(launch(&fake).is_err());
    assert_eq!(fake.instances().len(), 0);
    strike(&fake, Point::After, Effect::Drop);
    assert!(launch(&fake).is_err());
    assert_eq!(fake.instances().len(), 1);
}

#[test]
fn a_held_call_waits_for_its_release_and_others_go_on() {
    for (point, launched) in [(Point::Before, 0), (Point::After, 1)] {
        let fake = fake();
        strike(&fake, point, Effect::Hold);
        std::thread::scope(|scope| {
            let held = scope.spawn(|| launch(&fake).unwrap().status());
            wait::until("the call to be held", SOON, || {
                let waiting = fake.with(|ec2, _| ec2.waiting_faults().len());
                let is_held = waiting == 0 && fake.instances().len() == launched;
                is_held.then_some(()).ok_or("not there yet")
            });
            let other = request(&fake, "Action=DescribeRegions").send().unwrap();
            assert_eq!(other.status(), 200);
            assert!(!held.is_finished());
            assert_eq!(fake.instances().len(), launched);
            fake.control(Command::Release {});
            assert_eq!(held.join().unwrap(), 200);
        });
        assert_eq!(fake.instances().len(), 1);
    }
}

#[test]
fn two_calls_with_one_token_at_the_same_time_launch_once() {
    let fake = fake();
    std::thread::scope(|scope| {
        let calls: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| launch(&fake).unwrap().text().unwrap()))
            .collect();
        let answers: Vec<_> = calls.into_iter().map(|call| call.join().unwrap()).collect();
        let id = &fake.instances()[0].id;
        assert!(answers.iter().all(|answer| answer.contains(id)));
    });
    assert_eq!((fake.instances().len(), fake.count("CreateFleet")), (1, 8));
}

#[test]
fn a_region_that_is_down_refuses_drops_or_hangs_and_comes_back() {
    let fake = fake();
    let outage = |outage| {
        fake.control(Command::SetOutage {
            region: "us-east-1".to_owned(),
            outage,
        })
    };
    outage(Some(Outage::Unavailable));
    assert_eq!(launch(&fake).unwrap().status(), 503);
    outage(Some(Outage::Drop));
    assert!(launch(&fake).is_err());
    outage(Some(Outage::Hang));
    let impatient = request(&fake, LAUNCH)
        .timeout(Duration::from_millis(100))
        .send();
    assert!(impatient.unwrap_err().is_timeout());
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| launch(&fake).unwrap().status());
        outage(None);
        assert_eq!(hanging.join().unwrap(), 200);
    });
    assert_eq!(fake.instances().len(), 1);
}

#[test]
fn a_call_without_signature_is_refused() {
    let fake = fake();
    let client = Client::builder().no_proxy().build().unwrap();
    let answer = client
        .post(fake.url())
        .body("Action=DescribeRegions")
        .send()
        .unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.text().unwrap().contains("<Code>AuthFailure</Code>"));
}

#[test]
fn a_service_clock_that_is_off_refuses_what_was_signed_now_and_shows_its_date() {
    let fake = fake();
    let signed_at = || clock::wall_clock().strftime("%Y%m%dT%H%M%SZ").to_string();
    let send = || {
        let request = request(&fake, "Action=DescribeRegions");
        request.header("x-amz-date", signed_at()).send().unwrap()
    };
    fake.control(Command::SetClockCheck {
        ahead_seconds: Some(0),
    });
    assert_eq!(send().status(), 200);
    fake.control(Command::SetClockCheck {
        ahead_seconds: Some(600),
    });
    let answer = send();
    assert_eq!(answer.status(), 400);
    let date = answer.headers()["date"].to_str().unwrap().to_owned();
    let shown: Timestamp = jiff::fmt::rfc2822::parse(&date).unwrap().timestamp();
    let ahead = shown.duration_since(clock::wall_clock()).as_secs();
    assert!((590..=600).contains(&ahead), "{date} is ahead by {ahead} s");
    assert!(
        answer
            .text()
            .unwrap()
            .contains("<Code>RequestExpired</Code>")
    );
}

#[test]
fn commands_and_state_are_json() {
    let fake = fake();
    launch(&fake).unwrap();
    let client = Client::builder().no_proxy().build().unwrap();
    let url = format!("{}{CONTROL}", fake.url());
    let post = |body: &str| -> (u16, Value) {
        let answer = client.post(&url).body(body.to_owned()).send().unwrap();
        (answer.status().as_u16(), answer.json().unwrap())
    };
    let before = fake.now();
    let (status, answers) = post(
        r#"[{"advance": {"by": "1h 5s"}},
            {"set_capacity": {"zone": "us-east-1a", "instance_type": "c5.large", "capacity_type": "on-demand", "free": 7}},
            {"fault": {"action": "*", "point": "after", "effect": "drop"}},
            {"spot_notice": {"id": "i-0"}}]"#,
    );
    assert_eq!((status, answers), (200, json!([null, null, null, null])));
    assert_eq!(fake.now().duration_since(before).as_secs(), 3605);
    let (status, answer) = post(
        r#"{"set_capacity": {"zone": "moon", "instance_type": "c5.large", "capacity_type": "spot", "free": 7}}"#,
    );
    assert_eq!((status, answer), (400, json!({"error": "no zone `moon`"})));
    let state: Value = client.get(&url).send().unwrap().json().unwrap();
    assert_eq!(state["instances"][0]["state"], "running");
    assert_eq!(state["instances"][0]["request_token"], "t");
    assert_eq!(
        state["tokens"][0],
        json!({"region": "us-east-1", "action": "CreateFleet", "token": "t", "instances": 1})
    );
    assert_eq!(state["faults"].as_array().unwrap().len(), 1);
    let launched = state["calls"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["action"] == "CreateFleet")
        .unwrap();
    assert_eq!(launched["count"], 1);
}
