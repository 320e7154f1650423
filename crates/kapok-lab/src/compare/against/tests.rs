use super::*;
use crate::Model;
use crate::compare::Contender;
use crate::compare::fixture::{self, comparison, row, table};

fn change(p: f64, change: f64) -> Change {
    Change {
        table: String::new(),
        model: String::new(),
        metric: Metric::CpuPerRequest,
        change,
        p,
        rounds: (20, 20),
        regression: false,
        improvement: false,
    }
}

#[test]
fn what_is_rare_alone_is_common_among_many() {
    let mut many: Vec<Change> = (0..20).map(|_| change(0.5, 1.1)).collect();
    many[3].p = 0.01;
    judge(&mut many);
    assert!(many.iter().all(|change| !change.regression));
    many[3].p = 0.0005;
    judge(&mut many);
    assert_eq!(many.iter().filter(|change| change.regression).count(), 1);
    assert!(many[3].regression && !many[3].improvement);

    let mut alone = [change(0.01, 0.9)];
    judge(&mut alone);
    assert!(alone[0].improvement && !alone[0].regression);
}

/// Three models, of which the last costs `us`, in so many rounds.
fn result(us: f64, rounds: usize) -> Comparison {
    let rows = vec![row("tokio", 6.0, rounds), row("epoll", 5.0, rounds), row("fiber", us, rounds)];
    comparison(vec![table(64, rows)])
}

#[test]
fn too_few_rounds_are_told_and_do_not_pass() {
    // Twice the cost, and three against three cannot show it.
    let found = Changes::between(&result(6.0, 3), &result(12.0, 3));
    assert!(!found.has_regression() && !found.passed(), "{found:?}");
    // Four comparisons at 0.5 % each: 2 of C(n + 3, 3) orders, C(16, 3) = 560.
    let [too_few] = &found.too_few[..] else { panic!("{found:?}") };
    assert!(too_few.contains("epoll, fiber: too few rounds to find any change"), "{too_few}");
    assert!(too_few.ends_with("3 then and 3 now: 12 would do"), "{too_few}");

    // The number that was told suffices, and one fewer does not.
    let found = Changes::between(&result(6.0, 3), &result(12.0, 12));
    assert!(found.too_few.is_empty() && found.has_regression() && !found.passed(), "{found:?}");
    assert!(!Changes::between(&result(6.0, 3), &result(12.0, 11)).too_few.is_empty());
    assert!(Changes::between(&result(6.0, 3), &result(6.0, 12)).passed());

    // One round is so few that both are to be measured again: 2 of C(12, 6).
    let found = Changes::between(&result(6.0, 1), &result(6.0, 100));
    assert!(found.too_few[0].ends_with("1 then and 100 now: 6 in both would do"), "{found:?}");
}

#[test]
fn what_failed_then_does_not_ask_for_rounds_now() {
    let mut old = result(6.0, 20);
    old.tables[0].rows[2] = row("fiber", 6.0, 1);
    assert!(!Changes::between(&old, &result(6.0, 20)).passed());
    old.tables[0].rows[2].trouble = Some("the server ended".to_owned());
    let found = Changes::between(&old, &result(6.0, 20));
    assert!(found.passed() && found.notes[0].contains("fiber: too few rounds"), "{found:?}");
}

#[test]
fn what_was_measured_and_is_not_any_more_does_not_pass() {
    let old = result(6.0, 20);
    let lost = |name: &str, expected: &str, damage: &dyn Fn(&mut Comparison)| {
        let mut new = result(6.0, 20);
        assert!(Changes::between(&old, &new).passed());
        damage(&mut new);
        let found = Changes::between(&old, &new);
        assert!(!found.passed(), "{name}: {found:?}");
        assert!(found.lost.iter().any(|lost| lost.contains(expected)), "{name}: {found:?}");
        assert!(!found.has_regression(), "{name}: {found:?}");
    };
    lost("a row", "fiber: measured then and not now", &|new| drop(new.tables[0].rows.pop()));
    lost("a broken row", "fiber: measured then and could not be now: no such", &|new| {
        new.tables[0].rows[2].measured.clear();
        new.tables[0].rows[2].trouble = Some("no such file".to_owned());
    });
    lost("a row that breaks", "fiber: measured then and failed now: it ended", &|new| {
        new.tables[0].rows[2].trouble = Some("it ended".to_owned());
    });
    lost("the baseline", "relative to tokio then and to nothing now", &|new| {
        new.tables[0].rows[0].measured.clear();
        new.tables[0].baseline = None;
    });
    lost("another baseline", "relative to tokio then and to epoll now", &|new| {
        new.tables[0].baseline = Some("epoll".to_owned());
    });
    lost("a table", "64 connections: measured then and not now", &|new| {
        new.tables[0].connections = 65;
        new.tables[0].active = 65;
    });
    lost("no round with the baseline", "fiber: no round together with the baseline", &|new| {
        new.tables[0].rows[2].measured.iter_mut().for_each(|measured| measured.round += 100);
    });

    // What had failed then as well is not lost, and what is new has nothing to be held against.
    let (mut old, mut new) = (result(6.0, 20), result(6.0, 20));
    for one in [&mut old, &mut new] {
        let mut broken = row("poll", 6.0, 0);
        broken.trouble = Some("no such file".to_owned());
        one.tables[0].rows.push(broken);
    }
    new.tables[0].rows.push(row("uring", 6.0, 20));
    new.tables.push(table(1000, vec![row("tokio", 6.0, 20)]));
    let found = Changes::between(&old, &new);
    assert!(found.passed(), "{found:?}");
    for name in ["uring: not in the older one", "1000 connections: not in the older one"] {
        assert!(found.notes.iter().any(|note| note.contains(name)), "{name}: {found:?}");
    }
    // A result without a comparison has not passed any.
    let single = || comparison(vec![table(64, vec![row("tokio", 6.0, 20)])]);
    assert!(!Changes::between(&single(), &single()).passed());
}

#[test]
fn servers_on_other_resources_are_not_compared() {
    let old = result(6.0, 20);
    let unlike = |expected: &str, change: &dyn Fn(&mut Comparison)| {
        let mut new = result(9.0, 20);
        change(&mut new);
        let found = Changes::between(&old, &new);
        assert!(!found.passed() && found.changes.is_empty(), "{expected}: {found:?}");
        assert!(found.unlike.iter().any(|why| why.contains(expected)), "{expected}: {found:?}");
    };
    unlike("1 worker(s) then and have 4 now", &|new| new.workers = Some(4));
    unlike("1 core(s) then and have 2 now", &|new| new.server_cores = vec![0, 1]);
    unlike("shared their core with the load, but only now", &|new| new.load_cores = vec![0]);
}

#[test]
fn other_conditions_are_told() {
    let old = result(6.0, 20);
    let mut new = result(6.0, 20);
    // Results that are older than the field have it in words only.
    new.workers = None;
    new.seconds = 2.0;
    new.conditions = vec!["30 interleaved rounds".into(), "the same for all: 4 worker(s)".into()];
    let found = Changes::between(&old, &new);
    assert!(found.passed(), "{found:?}");
    let expected = [
        "rounds of another length: 0.5 s then and 2 s now",
        "a condition only now: the same for all: 4 worker(s)",
    ];
    assert_eq!(found.notes, expected);
}

#[test]
fn as_many_rounds_as_can_show_a_change() {
    let models = [Model::Tokio, Model::Epoll, Model::Fiber];
    let config = fixture::config(models.map(Contender::Model).to_vec());
    // Those that the comparison itself asks for.
    assert_eq!(Rounds::against(&result(6.0, 3), &config, 200), Some(12));
    assert_eq!(Rounds::against(&result(6.0, 3), &config, 11), None);
    assert_eq!(Rounds::against(&result(6.0, 1), &config, 200), None);
    // One model besides the baseline is fewer comparisons than the older one would allow.
    let two = CompareConfig { contenders: config.contenders[..2].to_vec(), ..config.clone() };
    assert_eq!(Rounds::against(&result(6.0, 3), &two, 200), Some(9));
    // Nothing to hold anything against asks for nothing.
    assert_eq!(Rounds::against(&comparison(Vec::new()), &config, 200), Some(1));
    let mut old = result(6.0, 3);
    old.tables[0].rows[2] = row("fiber", 6.0, 1);
    old.tables[0].rows[2].trouble = Some("it ended".to_owned());
    assert_eq!(Rounds::against(&old, &config, 200), Some(12));
}
