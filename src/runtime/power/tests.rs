//! On made-up trees and fed readings: no clock decides about a number.

use super::find;
use super::meter::{Reading, Tally};
use super::*;
use std::cell::Cell;
use std::io;
use std::path::Path;
use tempfile::TempDir;

/// A made-up `/sys`.
struct Tree(TempDir);

impl Tree {
    fn new(files: &[(&str, &str)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(path, text)| tree.write(path, text));
        tree
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        std::fs::remove_file(self.0.path().join(path)).unwrap();
    }

    fn meter(&self) -> PowerMeter {
        PowerMeter::find(self.0.path()).unwrap()
    }

    /// Names, and whether they are totals.
    fn rails(&self) -> Vec<(String, bool)> {
        self.meter().rails().map(|(name, is_total)| (name.to_owned(), is_total)).collect()
    }

    fn error(&self) -> String {
        PowerMeter::find(self.0.path()).unwrap_err().to_string()
    }
}

fn named<const N: usize>(rails: [(&str, bool); N]) -> Vec<(String, bool)> {
    rails.map(|(name, is_total)| (name.to_owned(), is_total)).to_vec()
}

/// An Orin NX: 5 V × 2 A at the input, 5 V × 500 mA in the processor, one channel not connected. Of what the
/// chip has besides, `in4` is a voltage over a shunt and `curr4` the sum of the currents.
const JETSON: [(&str, &str); 12] = [
    ("name", "ina3221\n"),
    ("in1_label", "VDD_CPU_GPU_CV\n"),
    ("in1_input", "5000\n"),
    ("curr1_input", "500\n"),
    ("in2_label", "VDD_IN\n"),
    ("in2_input", "5000\n"),
    ("curr2_input", "2000\n"),
    ("in3_label", "NC\n"),
    ("in3_input", "0\n"),
    ("curr3_input", "0\n"),
    ("in4_input", "40\n"),
    ("curr4_input", "2500\n"),
];

const INA: &str = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1";

fn jetson() -> Tree {
    let tree = Tree::new(&[]);
    JETSON.iter().for_each(|(file, text)| tree.write(&format!("{INA}/{file}"), text));
    tree
}

/// Zones of powercap as (id, name, µJ), each wrapping after one joule.
fn powercap(zones: &[(&str, &str, &str)]) -> Tree {
    let tree = Tree::new(&[("class/powercap/intel-rapl/enabled", "1\n")]);
    for (id, name, energy) in zones {
        tree.write(&format!("class/powercap/{id}/name"), name);
        tree.write(&format!("class/powercap/{id}/energy_uj"), energy);
        tree.write(&format!("class/powercap/{id}/max_energy_range_uj"), "1000000\n");
    }
    tree
}

/// Reads all rails at each of these seconds.
fn tick(meter: &mut PowerMeter, tallies: &mut [Tally], seconds: &[f64]) {
    seconds.iter().for_each(|&at| meter.tick(tallies, &|| at, true));
}

fn watts(readings: &[(f64, f64)]) -> Tally {
    let mut tally = Tally::default();
    readings.iter().for_each(|&(at, watts)| tally.add(at, Reading::Watts(watts)).unwrap());
    tally
}

#[test]
fn powers_are_integrated_by_trapezoids() {
    assert_eq!(watts(&[(0.0, 2.5), (0.25, 2.5), (1.0, 2.5), (4.0, 2.5)]).watts(), Some(2.5));
    // From 0 to 4 W in two seconds, then a second at 4 W: 4 J + 4 J in 3 s.
    assert_eq!(watts(&[(0.0, 0.0), (2.0, 4.0), (3.0, 4.0)]).watts(), Some(8.0 / 3.0));
    // What happens between two stretches is not counted: 2 J in 1 s and 12 J in 3 s.
    let mut tally = watts(&[(0.0, 2.0), (1.0, 2.0)]);
    tally.pause();
    for at in [50.0, 53.0] {
        tally.add(at, Reading::Watts(4.0)).unwrap();
    }
    assert_eq!((tally.watts(), tally.n_samples()), (Some(3.5), 4));
    assert_eq!(watts(&[(1.0, 2.0)]).watts(), None, "one reading is no stretch of time");
}

#[test]
fn counters_are_subtracted_across_their_wrap() {
    let mut tally = Tally::default();
    // 100,000 µJ up to the end and 200,000 from zero are 0.3 J, then 0.1 J: 0.4 J in 2 s.
    for (at, energy) in [(0.0, 900_000), (1.0, 200_000), (2.0, 300_000)] {
        tally.add(at, Reading::Microjoules(energy, Some(1_000_000))).unwrap();
    }
    assert_eq!(tally.watts(), Some(0.2));
    // Without a range, or from beyond it, nothing can be said.
    for range in [None, Some(800_000)] {
        let mut tally = Tally::default();
        tally.add(0.0, Reading::Microjoules(900_000, range)).unwrap();
        let error = tally.add(1.0, Reading::Microjoules(200_000, range)).unwrap_err();
        assert!(error.contains("900000") && error.contains("200000"), "{error}");
    }
}

#[test]
fn a_counter_that_wraps_in_its_file_is_followed() {
    let tree = powercap(&[("intel-rapl:0", "package-0", "900000\n")]);
    let mut meter = tree.meter();
    let mut tallies = meter.tallies();
    meter.tick(&mut tallies, &|| 0.0, true);
    tree.write("class/powercap/intel-rapl:0/energy_uj", "100000\n");
    // Not due yet, then due: 0.2 J in 2 s.
    meter.tick(&mut tallies, &|| 0.5, false);
    assert_eq!(tallies[0].n_samples(), 1);
    meter.tick(&mut tallies, &|| 2.0, false);
    assert_eq!((tallies[0].watts(), tallies[0].n_samples()), (Some(0.1), 2));
}

#[test]
fn the_rails_of_a_jetson_are_behind_its_input() {
    let tree = jetson();
    assert_eq!(tree.rails(), named([("ina3221 VDD_CPU_GPU_CV", false), ("ina3221 VDD_IN", true)]));
    let mut meter = tree.meter();
    let mut tallies = meter.tallies();
    let second = Cell::new(0.0);
    for _ in 0..3 {
        // Every rail is stamped when it was read, whatever the others took.
        meter.tick(&mut tallies, &|| second.replace(second.get() + 0.25), true);
    }
    // 5000 mV × 500 mA and 5000 mV × 2000 mA.
    assert_eq!(tallies.iter().map(Tally::watts).collect::<Vec<_>>(), [Some(2.5), Some(10.0)]);
}

#[test]
fn boards_without_an_input_rail_have_several_totals() {
    let rail = |i: usize, name: &str| {
        let dir = "bus/i2c/drivers/ina3221x/1-0040/iio:device0";
        [
            (format!("{dir}/rail_name_{i}"), name.to_owned()),
            (format!("{dir}/in_power{i}_input"), "1500".into()),
        ]
    };
    let files: Vec<_> = [rail(0, "GPU"), rail(1, "CPU")].concat();
    let tree = Tree::new(&[]);
    files.iter().for_each(|(path, text)| tree.write(path, text));
    assert_eq!(tree.rails(), named([("ina3221 GPU", true), ("ina3221 CPU", true)]));
    let mut meter = tree.meter();
    let mut tallies = meter.tallies();
    tick(&mut meter, &mut tallies, &[0.0, 1.0]);
    assert_eq!(tallies[0].watts(), Some(1.5), "1500 mW");

    // The AGX Orin's memory is in its 5 V rail; the module and the carrier of a TX2 are side by side.
    for (labels, totals) in [
        (["VDD_GPU_SOC", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"], [true, true, false]),
        (["VDD_SYS_GPU", "VDD_IN", "VDD_MUX"], [false, true, true]),
    ] {
        let tree = jetson();
        (1..).zip(labels).for_each(|(i, label)| tree.write(&format!("{INA}/in{i}_label"), label));
        assert_eq!(tree.rails().into_iter().map(|(_, is_total)| is_total).collect::<Vec<_>>(), totals);
    }
}

#[test]
fn zones_within_zones_are_no_totals() {
    let zones = [
        ("intel-rapl:0", "package-0", "5"),
        ("intel-rapl:0:0", "core", "5"),
        ("intel-rapl:0:1", "dram", "5"),
        ("intel-rapl:1", "package-1", "5"),
        ("intel-rapl-mmio:0", "package-0", "5"),
    ];
    let tree = powercap(&zones);
    // Children are folders of their parents too.
    tree.write("class/powercap/dtpm:0/energy_uj", "5");
    tree.write("class/powercap/dtpm:0/dtpm:0:0/energy_uj", "5");
    let expected = named([
        ("dtpm:0", true),
        ("dtpm:0:0", false),
        ("intel-rapl:0 package-0", true),
        ("intel-rapl:0:0 core", false),
        ("intel-rapl:0:1 dram", true),
        ("intel-rapl:1 package-1", true),
    ]);
    assert_eq!(tree.rails(), expected);
    // The platform has everything in it, wherever it stands.
    let tree = powercap(&[&zones[..], &[("intel-rapl:2", "psys", "5")]].concat());
    let totals: Vec<_> = tree.rails().into_iter().filter(|(_, is_total)| *is_total).collect();
    assert_eq!(totals, named([("intel-rapl:2 psys", true)]));
}

#[cfg(unix)]
#[test]
fn a_chip_that_two_paths_lead_to_is_one_chip() {
    let tree = jetson();
    let class = tree.0.path().join("class/hwmon");
    std::fs::create_dir_all(&class).unwrap();
    for name in ["hwmon1", "hwmon7"] {
        std::os::unix::fs::symlink(tree.0.path().join(INA), class.join(name)).unwrap();
    }
    assert_eq!(tree.rails().len(), 2);
}

#[test]
fn any_chip_with_power_or_energy_counts() {
    let tree = Tree::new(&[
        ("class/hwmon/hwmon2/name", "amdgpu\n"),
        ("class/hwmon/hwmon2/power1_label", "PPT\n"),
        ("class/hwmon/hwmon2/power1_average", "1000000\n"),
        ("class/hwmon/hwmon2/power1_input", "3000000\n"),
        ("class/hwmon/hwmon2/power1_cap", "9000000\n"),
        ("class/hwmon/hwmon10/name", "amdgpu\n"),
        ("class/hwmon/hwmon10/power1_label", "PPT\n"),
        ("class/hwmon/hwmon10/power1_average", "2000000\n"),
        ("class/hwmon/hwmon11/energy3_input", "7\n"),
    ]);
    let expected =
        named([("amdgpu PPT (hwmon2)", true), ("amdgpu PPT (hwmon10)", true), ("hwmon11 energy3", true)]);
    assert_eq!(tree.rails(), expected);
    let mut meter = tree.meter();
    let mut tallies = meter.tallies();
    meter.tick(&mut tallies, &|| 0.0, true);
    tree.write("class/hwmon/hwmon11/energy3_input", "1000007\n");
    meter.tick(&mut tallies, &|| 2.0, true);
    // 3,000,000 µW, 2,000,000 µW, and a million µJ in two seconds.
    assert_eq!(tallies.iter().map(Tally::watts).collect::<Vec<_>>(), [Some(3.0), Some(2.0), Some(0.5)]);
}

#[test]
fn a_rail_that_vanishes_is_dropped_and_named() {
    let tree = jetson();
    let mut meter = tree.meter();
    let mut idle = meter.tallies();
    tick(&mut meter, &mut idle, &[0.0, 1.0]);
    let mut busy = meter.tallies();
    meter.tick(&mut busy, &|| 0.0, true);
    tree.remove(&format!("{INA}/curr2_input"));
    tick(&mut meter, &mut busy, &[1.0, 2.0]);
    let running = Running { seconds: 2.0, inferences: 1 };
    let options = PowerOptions::default();
    let result = report(&meter, &options, 1.0, &idle, &busy, running).unwrap();
    assert_eq!(result.rails.len(), 1);
    assert_eq!(result.rails[0].name, "ina3221 VDD_CPU_GPU_CV");
    assert!(result.rails[0].is_total, "its input is no longer among the rails");
    assert_eq!(result.rails[0].n_samples, 3);
    assert_eq!(result.unmeasured[0].name, "ina3221 VDD_IN");
    assert!(result.unmeasured[0].reason.contains("curr2_input"), "{:?}", result.unmeasured);

    tree.write(&format!("{INA}/in1_input"), "a fault\n");
    meter.tick(&mut busy, &|| 3.0, true);
    let error = report(&meter, &options, 1.0, &idle, &busy, running).unwrap_err();
    assert!(error.to_string().starts_with("every power rail stopped being readable"), "{error}");
}

#[test]
fn energy_is_shared_out_over_the_inferences() {
    let meter = jetson().meter();
    // The idle machine takes 1 W and 2 W, the busy one 3 W and 6 W.
    let idle = [watts(&[(0.0, 1.0), (1.0, 1.0)]), watts(&[(0.0, 2.0), (1.0, 2.0)])];
    let busy = [watts(&[(0.0, 3.0), (2.0, 3.0)]), watts(&[(0.0, 6.0), (2.0, 6.0)])];
    let running = Running { seconds: 1.5, inferences: 6 };
    let report = report(&meter, &PowerOptions::default(), 1.0, &idle, &busy, running).unwrap();
    // A quarter of a second each: 3 W × 0.25 s and (3 − 1) W × 0.25 s.
    let of = |r: &RailReport| (r.watts, r.joules_per_inference, r.joules_per_inference_above_idle);
    assert_eq!(report.rails.iter().map(of).collect::<Vec<_>>(), [(3.0, 0.75, 0.5), (6.0, 1.5, 1.0)]);
    assert_eq!((report.interval_ms, report.idle_seconds, report.inferences), (10.0, 1.0, 6));
}

#[test]
fn counters_of_root_alone_are_named_with_the_way_out() {
    let denied = |path: &Path| match path.ends_with("energy_uj") {
        true => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
        false => find::read(path),
    };
    let zones = [("intel-rapl:0", "package-0", "5"), ("intel-rapl:0:0", "core", "5")];
    let tree = powercap(&zones);
    let error = PowerMeter::find_with(tree.0.path(), &denied).unwrap_err().to_string();
    let file = tree.0.path().join("class/powercap/intel-rapl:0/energy_uj");
    assert!(error.starts_with("2 power rails found, none can be read: intel-rapl:0 package-0: "), "{error}");
    assert!(error.contains(&format!(
        "permission denied; run as root, or allow it: sudo chmod a+r {}",
        file.display()
    )));
    // Beside a chip that anyone may read, they are mentioned.
    tree.write("class/hwmon/hwmon0/power1_input", "1000000");
    let meter = PowerMeter::find_with(tree.0.path(), &denied).unwrap();
    assert_eq!(meter.rails().collect::<Vec<_>>(), [("hwmon0 power1", true)]);
    assert_eq!(meter.unmeasured().len(), 2);
}

#[test]
fn what_is_no_number_is_no_rail() {
    for text in ["", "\n", "abc", "1.5e3", "99999999999999999999999", "-5", "nan"] {
        let error = powercap(&[("intel-rapl:0", "package-0", text)]).error();
        assert!(error.contains("energy_uj holds") && error.contains("no number"), "{text:?}: {error}");
    }
    for text in ["", "abc", "1.5", "inf"] {
        let error = Tree::new(&[("class/hwmon/hwmon0/power1_input", text)]).error();
        assert!(error.contains("power1_input holds"), "{text:?}: {error}");
    }
    // A folder in place of a file, bytes that are no text.
    let error = Tree::new(&[("class/hwmon/hwmon0/power1_input/x", "")]).error();
    assert!(error.contains("not a file"), "{error}");
    let tree = Tree::new(&[("class/hwmon/hwmon0/power1_input", "")]);
    std::fs::write(tree.0.path().join("class/hwmon/hwmon0/power1_input"), [0xff, 0xfe]).unwrap();
    assert!(tree.error().contains("cannot read"));
}

#[test]
fn a_tree_without_sensors_says_so() {
    let tree = Tree::new(&[("class/hwmon/hwmon0/temp1_input", "40000"), ("class/powercap/x/name", "x")]);
    let error = tree.error();
    assert!(error.starts_with("no power sensor under ") && error.contains("class/powercap"), "{error}");
    assert!(PowerMeter::find(Path::new("/nowhere/at/all")).is_err());
}

#[test]
fn the_thread_reads_before_and_after_the_work() {
    let tree = jetson();
    let mut meter = tree.meter();
    let mut tallies = meter.tallies();
    for stretch in 1..=2 {
        let answer = meter.measure(Duration::from_secs(3600), &mut tallies, || 42).unwrap();
        assert_eq!((answer, tallies[0].n_samples()), (42, 2 * stretch));
    }
    // However long it took: 5 V × 500 mA.
    assert!((tallies[0].watts().unwrap() - 2.5).abs() < 1e-9);
}
