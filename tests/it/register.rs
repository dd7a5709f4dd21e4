//! A change that was answered holds on every replica, whatever happens to the replicas, their networks and their processes.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::{Client, Doomed, Register, Round, Service, Through, is_long};

/// The first and the last replica, when the one between is in trouble.
const HEALTHY: [usize; 2] = [0, 2];
const ALL: [usize; 3] = [0, 1, 2];

const LEASE: Duration = Duration::from_secs(1);
/// By now the longest lease must have ended, in a time that clocks may count one in a hundred slower.
const AFTER_THE_LEASE: Duration = Duration::from_millis(1_020);
/// A lease, and what a busy machine may need.
const LONGEST_ANSWER: Duration = Duration::from_secs(4);
/// What the median of the answers of healthy replicas may not exceed on however busy a machine: nobody is waited for in vain.
const USUAL_ANSWER: Duration = Duration::from_millis(900);

fn rounds(usual: usize, long: usize) -> std::ops::Range<usize> {
    0..if is_long() { long } else { usual }
}

fn median(rounds: &[Round]) -> Duration {
    let mut times: Vec<_> = rounds.iter().map(|round| round.answered_after).collect();
    times.sort_unstable();
    eprintln!("changes were answered after {:?} (median) to {:?}", times[times.len() / 2], times[times.len() - 1]);
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_begins_after_the_answer_is_refused_by_every_replica() {
    let register = Register::start().await;
    let mut all = Vec::new();
    for n in rounds(150, 500) {
        let round = register.round(Through::any_of(&ALL)).await;
        assert_eq!((round.violations, round.unavailable), (0, 0), "round {n}: {round:?}");
        all.push(round);
    }
    assert!(median(&all) < USUAL_ANSWER);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_from_the_database_lets_nobody_in() {
    let register = Register::start().await;
    let relay = &register.cluster.relays[1];
    for n in rounds(4, 20) {
        let key = register.issue().await;
        let revoke = async || {
            if n % 2 == 0 {
                relay.swallow();
            } else {
                relay.reset();
            }
            register.revoke(&key, Through::any_of(&HEALTHY)).await;
        };
        let round = register.round_of(&key, true, revoke, async || relay.pass()).await;
        assert_eq!(round.violations, 0, "round {n}: {round:?}");
        assert!(round.answered_after >= LEASE, "nobody waited for the lease of the replica: {round:?}");
        assert!(round.answered_after < LONGEST_ANSWER, "round {n}: {round:?}");
        register.cluster.wait_until_leased().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_that_are_lost_cost_time_and_nothing_else() {
    let register = Register::start().await;
    let kill = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and query ilike 'listen%'";
    let mut all = Vec::new();
    for n in rounds(20, 100) {
        let key = register.issue().await;
        let revoke = async || {
            register.cluster.database.sql(kill).await;
            register.revoke(&key, Through::any_of(&ALL)).await;
        };
        let round = register.round_of(&key, true, revoke, async || ()).await;
        assert_eq!((round.violations, round.unavailable), (0, 0), "round {n}: {round:?}");
        assert!(round.answered_after < LONGEST_ANSWER, "round {n}: {round:?}");
        all.push(round);
    }
    median(&all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_listener_is_half_open_hears_of_changes_by_asking() {
    let register = Register::start().await;
    let mut all = Vec::new();
    for n in rounds(15, 100) {
        let key = register.issue().await;
        let revoke = async || {
            if n == 0 {
                register.cluster.relays[1].half_open();
            }
            register.revoke(&key, Through::any_of(&HEALTHY)).await;
        };
        let round = register.round_of(&key, true, revoke, async || ()).await;
        assert_eq!(round.violations, 0, "round {n}: {round:?}");
        assert!(round.answered_after < LONGEST_ANSWER, "round {n}: {round:?}");
        if n == 0 {
            // Connections that died in silence are replaced; the one that listens is not missed.
            register.cluster.wait_until_leased().await;
        } else {
            assert_eq!(round.unavailable, 0, "round {n}: {round:?}");
            all.push(round);
        }
    }
    median(&all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_wakes_up_does_not_believe_its_memory() {
    let register = Register::start().await;
    let asleep = &register.cluster.replicas[1];
    for n in rounds(8, 50) {
        let key = register.issue().await;
        let revoke = async || {
            asleep.signal("STOP");
            register.revoke(&key, Through::any_of(&HEALTHY)).await;
        };
        let wake = async || {
            // These begin after the answer, and are the first thing that the process sees.
            let mut clients = Vec::new();
            for _ in 0..8 {
                let mut client = Client::open(&asleep.internal, &key.text).await;
                client.ask().await;
                clients.push(client);
            }
            asleep.signal("CONT");
            for client in &mut clients {
                let answer = client.answer().await.unwrap();
                assert!(matches!(answer.status, 401 | 503), "round {n}: {answer:?}");
            }
        };
        let round = register.round_of(&key, true, revoke, wake).await;
        assert_eq!(round.violations, 0, "round {n}: {round:?}");
        assert!((LEASE..LONGEST_ANSWER).contains(&round.answered_after), "round {n}: {round:?}");
        register.cluster.wait_until_leased().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_killed_is_waited_for_no_longer_than_a_lease() {
    let mut register = Register::start().await;
    for n in rounds(3, 100) {
        let key = register.issue().await;
        let revoke = async || {
            register.cluster.replicas[1].signal("KILL");
            register.revoke(&key, Through::any_of(&HEALTHY)).await;
        };
        let round = register.round_of(&key, true, revoke, async || ()).await;
        assert_eq!((round.violations, round.unavailable), (0, 0), "round {n}: {round:?}");
        assert!((LEASE..LONGEST_ANSWER).contains(&round.answered_after), "round {n}: {round:?}");
        register.cluster.replace(1).await;
    }
}

/// The key that the account was made with, judged by its plan.
fn first_key(register: &Register, is_pro: bool) -> Doomed {
    let text = register.cluster.key.clone();
    if is_pro {
        Doomed { id: String::new(), text, is_old: |answer| answer.header("x-plan") == "pro" }
    } else {
        Doomed { id: String::new(), text, is_old: |answer| answer.header("x-plan") == "enterprise" }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_that_was_set_on_the_command_line_holds_everywhere_when_the_command_ends() {
    let register = Register::start().await;
    for n in rounds(10, 50) {
        let key = first_key(&register, n % 2 == 1);
        let url = register.cluster.database.url.clone();
        let set = async || {
            let plan = if n % 2 == 1 { "enterprise" } else { "pro" };
            let mut command = Service::command();
            command.args(["accounts", "set-plan", "Acme", plan]).env("DATABASE_URL", url);
            let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        let round = register.round_of(&key, true, set, async || ()).await;
        assert_eq!((round.violations, round.unavailable), (0, 0), "round {n}: {round:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_changes_by_sql_holds_everywhere_after_a_lease() {
    let register = Register::start().await;
    let sql = async |sql: &str| {
        register.cluster.database.sql(sql).await;
        sleep(AFTER_THE_LEASE).await;
    };
    for n in rounds(2, 10) {
        let statements = [
            "update api_keys set revoked_at = now() where id = (select key_id from key_secrets where prefix = 'PREFIX')",
            "delete from api_keys where id = (select key_id from key_secrets where prefix = 'PREFIX')",
            "delete from key_secrets where prefix = 'PREFIX'",
            "update key_secrets set retires_at = now() where prefix = 'PREFIX'",
        ];
        for statement in statements {
            let key = register.issue().await;
            let statement = statement.replace("PREFIX", &key.text[3..11]);
            let round = register.round_of(&key, true, async || sql(&statement).await, async || ()).await;
            assert_eq!((round.violations, round.unavailable), (0, 0), "{statement}: {round:?}");
        }
        let plan = if n % 2 == 1 { "enterprise" } else { "pro" };
        let statement = format!("update accounts set plan = '{plan}'");
        let key = first_key(&register, n % 2 == 1);
        let round = register.round_of(&key, true, async || sql(&statement).await, async || ()).await;
        assert_eq!((round.violations, round.unavailable), (0, 0), "{statement}: {round:?}");
    }
}
