//! Finding power sensors in the kernel's tree, usually `/sys`.
//!
//! | where | what | is part of |
//! |---|---|---|
//! | `bus/i2c/drivers/ina3221*`, and hwmon of that name | the rails of Jetson boards | the input rail of its board |
//! | `class/powercap` | energy counters of x86 processors (RAPL) and whatever else is a zone | its parent |
//! | `class/hwmon` | power and energy of any other chip | – |

use super::Unmeasured;
use super::meter::{Rail, Sensor};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// Reads a file of the tree: [`read`], or a test's.
pub(super) type Read<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// What a tree has.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What could be read, ordered by place in the tree.
    pub(super) rails: Vec<Rail>,
    /// What could not.
    pub(super) unmeasured: Vec<Unmeasured>,
    /// Folders that were looked at, links resolved: most chips can be reached by several paths.
    seen: BTreeSet<PathBuf>,
}

/// Rails that feed a board, by NVIDIA's names: all others of the INA3221 chips are behind them. The module
/// (`VDD_IN`) and the carrier of a TX1 or TX2 (`VDD_MUX`) branch from the plug side by side.
const INPUTS: [&str; 5] = ["VDD_IN", "5V_IN", "POM_5V_IN", "VDD_MUX", "VIN"];

/// On an AGX Orin the first is behind the second, and no rail feeds the whole board.
const ORIN_PART: [&str; 2] = ["VDDQ_VDD2_1V8AO", "VIN_SYS_5V0"];

/// Counters of the processor by another bus: mostly those that `intel-rapl` has too.
const MMIO: &str = "intel-rapl-mmio:";

/// Levels of zones within zones that are looked at.
const MAX_DEPTH: usize = 4;

/// All sensors under a root.
pub(super) fn find(root: &Path, read: Read<'_>) -> Found {
    let mut found = Found::default();
    found.ina3221(root, read);
    found.powercap(root, read);
    for dir in entries(&root.join("class/hwmon"), "hwmon") {
        found.hwmon(&dir, read);
    }
    found.name_apart();
    found
}

impl Found {
    fn ina3221(&mut self, root: &Path, read: Read<'_>) {
        let first = self.rails.len();
        let mut hwmon = Vec::new();
        for driver in entries(&root.join("bus/i2c/drivers"), "ina3221") {
            for device in entries(&driver, "") {
                hwmon.extend(entries(&device.join("hwmon"), "hwmon"));
                for dir in entries(&device, "iio:device") {
                    self.ina3221_iio(&dir, read);
                }
            }
        }
        let class = entries(&root.join("class/hwmon"), "hwmon");
        hwmon.extend(
            class.into_iter().filter(|dir| text(&dir.join("name"), read).as_deref() == Some("ina3221")),
        );
        for dir in hwmon.iter().filter(|dir| self.is_new(dir)).collect::<Vec<_>>() {
            // The chip has three channels; `in4` to `in6` are voltages over the shunts and `curr4` is a sum.
            for i in 1..=3 {
                let millivolts = dir.join(format!("in{i}_input"));
                let milliamperes = dir.join(format!("curr{i}_input"));
                if millivolts.exists() && milliamperes.exists() {
                    let label = text(&dir.join(format!("in{i}_label")), read);
                    let sensor = Sensor::Product { millivolts, milliamperes };
                    self.ina3221_rail(label, i, dir, sensor, read);
                }
            }
        }

        let rails = self.rails.get_mut(first..).unwrap_or_default();
        let named = |name: &str| rails.iter().position(|r| r.label == name).map(|i| first + i);
        let inputs: Vec<usize> = INPUTS.into_iter().filter_map(named).collect();
        let whole = named(ORIN_PART[1]);
        for rail in rails {
            if !INPUTS.contains(&rail.label.as_str()) {
                rail.part_of.clone_from(&inputs);
                rail.part_of.extend(whole.filter(|_| rail.label == ORIN_PART[0]));
            }
        }
    }

    /// NVIDIA's own driver, up to JetPack 4.
    fn ina3221_iio(&mut self, dir: &Path, read: Read<'_>) {
        if !self.is_new(dir) {
            return;
        }
        for i in 0..3 {
            let path = dir.join(format!("in_power{i}_input"));
            if path.exists() {
                let label = text(&dir.join(format!("rail_name_{i}")), read);
                self.ina3221_rail(label, i, dir, Sensor::Power { path, per_watt: 1e3 }, read);
            }
        }
    }

    fn ina3221_rail(&mut self, label: Option<String>, i: usize, dir: &Path, sensor: Sensor, read: Read<'_>) {
        let label = label.unwrap_or_else(|| format!("channel {i}"));
        // Not connected.
        if label != "NC" {
            self.offer(format!("ina3221 {label}"), label, dir, sensor, read);
        }
    }

    fn powercap(&mut self, root: &Path, read: Read<'_>) {
        let first = self.rails.len();
        let mut zones = Vec::new();
        for dir in entries(&root.join("class/powercap"), "") {
            self.zones(&dir, MAX_DEPTH, &mut zones);
        }
        zones.sort_by_key(|dir| (file_name(dir).starts_with(MMIO), natural(dir)));
        for dir in zones {
            let id = file_name(&dir);
            let label = text(&dir.join("name"), read).unwrap_or_default();
            let is_known =
                || self.rails.iter().any(|r| r.label == label && r.name.starts_with("intel-rapl:"));
            if !id.starts_with(MMIO) || !is_known() {
                let range = text(&dir.join("max_energy_range_uj"), read).and_then(|t| t.parse().ok());
                let sensor = Sensor::Counter { path: dir.join("energy_uj"), range };
                let name = format!("{id} {label}").trim().to_owned();
                self.offer(name, label, &dir, sensor, read);
            }
        }

        let rails = self.rails.get_mut(first..).unwrap_or_default();
        let ids: Vec<(String, bool)> = rails
            .iter()
            .map(|r| (r.name.split(' ').next().unwrap_or_default().to_owned(), r.label == "psys"))
            .collect();
        for (rail, (id, is_psys)) in rails.iter_mut().zip(&ids) {
            let is_rapl = id.starts_with("intel-rapl");
            // Memory is a zone of its package, but its energy is not in the package's: Intel's manual, volume
            // 3B, "RAPL Domains". `psys` is the whole platform and has no children.
            let is_memory = is_rapl && rail.label == "dram";
            let is_whole = |other: &str, is_platform: bool| {
                let is_ancestor = id.strip_prefix(other).is_some_and(|rest| rest.starts_with(':'));
                (is_ancestor && !is_memory) || (is_platform && is_rapl && !is_psys)
            };
            let wholes = ids.iter().enumerate().filter(|(_, (other, psys))| is_whole(other, *psys));
            rail.part_of = wholes.map(|(i, _)| first + i).collect();
        }
    }

    /// Zones with a counter. The class lists all of them flat, each of which has its children as folders too.
    fn zones(&mut self, dir: &Path, depth: usize, zones: &mut Vec<PathBuf>) {
        if depth == 0 || !self.is_new(dir) {
            return;
        }
        if dir.join("energy_uj").exists() {
            zones.push(dir.to_owned());
        }
        for child in entries(dir, &format!("{}:", file_name(dir))) {
            self.zones(&child, depth - 1, zones);
        }
    }

    fn hwmon(&mut self, dir: &Path, read: Read<'_>) {
        if !self.is_new(dir) {
            return;
        }
        let chip = text(&dir.join("name"), read).unwrap_or_else(|| file_name(dir));
        for path in entries(dir, "power") {
            let name = file_name(&path);
            let Some(channel) = name.strip_suffix("_input").or_else(|| name.strip_suffix("_average")) else {
                continue;
            };
            // A mean over a time of the driver's choice only where there is no better.
            if !name.ends_with("_average") || !dir.join(format!("{channel}_input")).exists() {
                let sensor = Sensor::Power { path: path.clone(), per_watt: 1e6 };
                self.hwmon_rail(&chip, channel, dir, sensor, read);
            }
        }
        for path in entries(dir, "energy") {
            if let Some(channel) = file_name(&path).strip_suffix("_input") {
                let sensor = Sensor::Counter { path: path.clone(), range: None };
                self.hwmon_rail(&chip, channel, dir, sensor, read);
            }
        }
    }

    fn hwmon_rail(&mut self, chip: &str, channel: &str, dir: &Path, sensor: Sensor, read: Read<'_>) {
        let label = text(&dir.join(format!("{channel}_label")), read).unwrap_or_else(|| channel.to_owned());
        self.offer(format!("{chip} {label}"), label, dir, sensor, read);
    }

    /// Takes a sensor that can be read, and says of others why not.
    fn offer(&mut self, name: String, label: String, dir: &Path, sensor: Sensor, read: Read<'_>) {
        match sensor.read(read) {
            Ok(_) => {
                let place = file_name(&dir.canonicalize().unwrap_or_else(|_| dir.to_owned()));
                self.rails.push(Rail { name, label, place, sensor, part_of: Vec::new(), lost: None });
            }
            Err(reason) => self.unmeasured.push(Unmeasured { name, reason }),
        }
    }

    /// Whether this folder was not looked at yet, by whatever path.
    fn is_new(&mut self, dir: &Path) -> bool {
        dir.canonicalize().is_ok_and(|dir| self.seen.insert(dir))
    }

    /// Two cards of one kind have rails of one name; they are told apart by their folders.
    fn name_apart(&mut self) {
        let names: Vec<String> = self.rails.iter().map(|r| r.name.clone()).collect();
        for rail in &mut self.rails {
            if names.iter().filter(|n| **n == rail.name).count() > 1 {
                rail.name = format!("{} ({})", rail.name, rail.place);
            }
        }
    }
}

/// The contents of a file without the blanks around; at most a page, as the kernel has it.
pub(super) fn read(path: &Path) -> io::Result<String> {
    use io::Read as _;
    // A pipe would be waited for.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file"));
    }
    let mut text = String::new();
    std::fs::File::open(path)?.take(4096).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// A label or another text, if there is one.
fn text(path: &Path, read: Read<'_>) -> Option<String> {
    read(path).ok().filter(|t| !t.is_empty()).map(|t| t.chars().take(60).collect())
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

/// What a folder holds under names that begin so; nothing if it cannot be listed.
fn entries(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let mut all: Vec<PathBuf> = all.filter(|p| file_name(p).starts_with(prefix)).collect();
    all.sort_by_key(|p| natural(p));
    all
}

/// Sorts `hwmon2` before `hwmon10`, and `intel-rapl:0:1` between `intel-rapl:0` and `intel-rapl:1`.
fn natural(path: &Path) -> (String, Vec<u64>, String) {
    let name = file_name(path);
    let digits = |c: char| c.is_ascii_digit();
    let stem = name.split(digits).next().unwrap_or_default().to_owned();
    let numbers = name.split(|c| !digits(c)).filter_map(|n| n.parse().ok()).collect();
    (stem, numbers, name)
}
