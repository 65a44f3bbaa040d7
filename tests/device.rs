//! Ranks for a device that is somewhere else: from a profile whose times follow a law, so that what should come out is known.

#![allow(clippy::unwrap_used, reason = "helpers of tests, outside of the test functions")]

mod common;

use basisopt::ir::{Graph, Tensor, infer::infer, parse};
use basisopt::passes::device::{Chain, DeviceModel, DeviceProfile, FORMAT, Sample, Work};
use basisopt::passes::{
    Executor, ExecutorError, Host, Manager, NoObserver, Pipeline, Program, Registry, Report,
};
use common::program::Bench;

/// Filters that this device computes at a time.
const TILE: usize = 8;
const OVERHEAD_MS: f64 = 0.01;
/// What a layer takes more in a network than alone.
const IN_NETWORK: f64 = 1.2;

/// Milliseconds of a work alone.
fn law(work: &Work) -> f64 {
    let area = |a: [usize; 2]| (a[0] * a[1]) as f64;
    match *work {
        Work::Conv { kernel, n_in, n_out, output, .. } => {
            let tiles = n_out.next_multiple_of(TILE) as f64;
            area(output) * (1e-6 * area(kernel) * n_in as f64 * tiles + 2e-5 * n_out as f64) + 5e-3
        }
        Work::Pair { kernel, n_in, rank, n_out, output, .. } => {
            let (tiles, n_out) = (rank.next_multiple_of(TILE) as f64, n_out as f64);
            area(output) * (8e-7 * (area(kernel) * n_in as f64 * tiles + rank as f64 * n_out) + 2e-5 * n_out)
                + 5e-3
        }
        Work::Map { n_elements, n_operands } => 1e-6 * (n_elements * n_operands) as f64 + 1e-3,
        _ => unreachable!("{work:?}"),
    }
}

/// Works of sizes that are spread evenly, by multiples of the golden ratio and its like.
fn profile(n: usize) -> DeviceProfile {
    let ([strides, kernel], mut works) = ([[1, 1], [3, 3]], Vec::new());
    for i in 0..n {
        let size = |axis: i32, from: f64, to: f64| {
            let u = (0.5 + (i + 1) as f64 * 1.1673_f64.powi(-axis)).fract();
            (from * (to / from).powf(u)).round() as usize
        };
        let (n_in, n_out, side) = (size(1, 8.0, 256.0), size(2, 8.0, 256.0), size(3, 6.0, 60.0));
        let output = [side, side];
        works.push(match i % 2 {
            0 => Work::Conv { kernel, strides, n_in, n_out, output },
            _ => Work::Pair { kernel, strides, n_in, rank: size(4, 2.0, n_out as f64), n_out, output },
        });
    }
    let output = [14, 14];
    for n in 1..=48 {
        works.push(Work::Conv { kernel, strides, n_in: 64, n_out: n, output });
        works.push(Work::Pair { kernel, strides, n_in: 64, rank: n, n_out: 64, output });
    }
    works.extend((0..20).map(|i| Work::Map { n_elements: 100 << (i / 2), n_operands: 1 + i % 2 }));
    let pace = |i: usize| if i.is_multiple_of(3) { 1.5 } else { 1.0 };
    let sample = |(i, work): (usize, Work)| Sample {
        // Now and then the device was hot, and so was what was measured along.
        ms: (law(&work) + OVERHEAD_MS) * pace(i),
        work,
        pace_ms: pace(i),
    };
    let chain: Vec<Work> = works[..6].to_vec();
    let alone: f64 = chain.iter().map(law).sum();
    DeviceProfile {
        basisopt_device: FORMAT,
        device: "a made-up board".to_owned(),
        fused: true,
        samples: works.into_iter().enumerate().map(sample).collect(),
        chains: vec![Chain { works: chain, ms: OVERHEAD_MS + IN_NETWORK * alone, pace_ms: 1.0 }],
    }
}

#[test]
fn times_of_layers_that_were_not_measured_are_predicted() {
    let profile = profile(160);
    let model = DeviceModel::new(&profile);
    assert_eq!(model.tiles(), [Some(TILE); 2]);
    assert!((model.in_network() - IN_NETWORK).abs() < 0.02, "{}", model.in_network());
    for (n_in, n, side) in [(40, 70, 20), (100, 33, 9), (16, 200, 40)] {
        let (kernel, strides, output) = ([3, 3], [1, 1], [side, side]);
        for work in [
            Work::Conv { kernel, strides, n_in, n_out: n, output },
            Work::Pair { kernel, strides, n_in, rank: n / 3, n_out: n, output },
        ] {
            let (found, expected) = (model.work_ms(&work).unwrap(), IN_NETWORK * law(&work));
            assert!((found / expected - 1.0).abs() < 0.06, "{work:?}: {found} for {expected}");
        }
    }
    let kept_out = profile.kept_out();
    // Stairs, with their close neighbours, do not count.
    assert_eq!(kept_out.iter().map(|k| k.n).collect::<Vec<_>>(), [80, 80, 20]);
    for kept in kept_out {
        assert!(kept.median.unwrap() < 0.04, "{kept:?}");
    }
}

#[test]
fn what_a_profile_lacks_is_named() {
    let model = DeviceModel::new(&profile(60));
    let error = model.work_ms(&Work::Linear { n_in: 8, n_out: 8, n_rows: 1 }).unwrap_err().to_string();
    assert!(error.contains("too few measurements of linear layers"), "{error}");
    let open = graph(
        "graph @g(%x: f32[1,8,H,W]) -> (%y) {\n  %w = f32[8,8,3,3] randn(seed=1)\n  %y = Conv(%x, %w)\n}",
    );
    let error = model.network_ms(&open).unwrap_err().to_string();
    assert!(error.contains("a size of it is not known"), "{error}");
}

/// Times that no device has must not become predictions that are no numbers.
#[test]
fn an_empty_chain_and_equal_times_do_no_harm() {
    let mut profile = profile(60);
    profile.chains = vec![Chain { works: vec![], ms: 1.0, pace_ms: 1.0 }];
    profile.samples.iter_mut().for_each(|s| s.ms = 1.0);
    let model = DeviceModel::new(&profile);
    assert_eq!(model.in_network(), 1.0);
    assert_eq!(model.tiles(), [None; 2]);
    let ms = model.work_ms(&Work::Map { n_elements: 500, n_operands: 2 }).unwrap();
    assert!(ms.is_finite() && ms > 0.0, "{ms}");
}

#[test]
fn what_is_no_profile_is_refused() {
    let good = serde_json::to_string(&profile(10)).unwrap();
    let (read, written) = (DeviceProfile::parse(&good).unwrap(), profile(10));
    assert_eq!((read.device, read.fused, read.chains.len()), (written.device, true, 1));
    assert_eq!(read.samples.len(), written.samples.len());
    for (a, b) in read.samples.iter().zip(&written.samples) {
        assert!(a.work == b.work && (a.ms / b.ms - 1.0).abs() < 1e-12);
    }
    for (text, words) in [
        ("", "not a device profile"),
        ("{}", "not a device profile"),
        ("{\"basisopt_device\": 99}", "format 99"),
        (&good.replace("\"ms\":", "\"ms\":-"), "not a device profile: a time of -"),
        (&good.replace("\"pace_ms\":1.0", "\"pace_ms\":0.0"), "not a device profile: a time of 0 ms"),
        (&good.replace("\"op\":\"conv\"", "\"op\":\"cnov\""), "not a device profile"),
        (&good[..good.len() / 2], "not a device profile"),
        (&good.replace("\"n_in\":64", "\"n_in\":0"), "work of impossible size"),
        (&good.replace("\"n_in\":64", "\"n_in\":18446744073709551615"), "work of impossible size"),
        (&good.replace("\"strides\":[1,1]", "\"strides\":[1,0]"), "work of impossible size"),
        (&good.replace("\"ms\":0.0111", "\"ms\":1e300"), "a time of 1000000"),
    ] {
        let error = DeviceProfile::parse(text).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

fn graph(text: &str) -> Graph {
    let mut graph = parse::parse(text).unwrap();
    infer(&mut graph).unwrap();
    graph
}

const NETWORK: &str = "graph @three(%x: f32[1,32,16,16]) -> (%z) {
  %w1 = f32[32,32,3,3] randn(seed=1)
  %w2 = f32[32,32,3,3] randn(seed=2)
  %w3 = f32[48,32,3,3] randn(seed=3)
  %a = Conv<pads=[1,1,1,1]>(%x, %w1)
  %b = Relu(%a)
  %c = Conv<pads=[1,1,1,1]>(%b, %w2)
  %d = Relu(%c)
  %e = Add(%d, %x)
  %z = Conv<pads=[1,1,1,1]>(%e, %w3)
}";

/// Counts how often it is asked for the time, which it takes from the law.
struct Device {
    name: &'static str,
    n_timed: usize,
}

impl Executor for Device {
    fn example_inputs(&mut self, _graph: &Graph, _seed: u64) -> Result<Vec<Tensor>, ExecutorError> {
        Err(ExecutorError("sizes are fixed here".to_owned()))
    }
    fn run(&mut self, _graph: &Graph, _inputs: &[Tensor]) -> Result<Vec<Tensor>, ExecutorError> {
        Err(ExecutorError("it only tells the time".to_owned()))
    }
    fn load(&mut self, _graph: &Graph) -> Result<Box<dyn Program>, ExecutorError> {
        Err(ExecutorError("it only tells the time".to_owned()))
    }
    fn seconds(&mut self, graphs: &[&Graph]) -> Result<Vec<f64>, ExecutorError> {
        self.n_timed += graphs.len();
        Ok(graphs.iter().map(|graph| 1e-3 * of_law(graph)).collect())
    }
    fn device(&self) -> Option<String> {
        Some(self.name.to_owned())
    }
}

fn of_law(network: &Graph) -> f64 {
    let mut network = network.clone();
    infer(&mut network).unwrap();
    let works = basisopt::passes::device::works(&network, true).unwrap();
    works.iter().map(|(_, work)| law(work)).sum()
}

/// One file.
struct File(String);

impl Host for File {
    fn read_text(&self, path: &str) -> Result<String, String> {
        (path == "board.json").then(|| self.0.clone()).ok_or_else(|| "no such file".to_owned())
    }
    fn progress(&self, _done: usize, _total: usize, _what: &str) {}
    fn interrupted(&self) -> bool {
        false
    }
}

fn run(pipeline: &str, device: Option<&mut Device>) -> Result<(Graph, Report), String> {
    let mut graph = parse::parse(NETWORK).unwrap();
    let pipeline = Pipeline::parse(pipeline, &Registry::builtin()).map_err(|e| e.to_string())?;
    let host = File(serde_json::to_string(&profile(160)).unwrap());
    let executor = device.map(|d| d as &mut dyn Executor);
    let mut manager = Manager { executor, host: &host, is_checked: false, ..Manager::default() };
    let report = manager.run(&mut graph, &pipeline, &mut NoObserver).map_err(|e| e.to_string())?;
    Ok((graph, report))
}

#[test]
fn a_budget_of_time_is_met_on_a_device_that_is_elsewhere() {
    let whole = of_law(&parse::parse(NETWORK).unwrap());
    for share in [0.45, 0.7] {
        let pipeline = format!("allocate-ranks:target=latency:{share}:device=board.json,factorize-conv");
        // Without an executor too: nothing is run.
        let (graph, report) = run(&pipeline, None).unwrap();
        let found = of_law(&graph) / whole;
        assert!(found <= 1.08 * share && found >= 0.6 * share, "{found} for {share}");
        assert!(report.remarks().any(|r| r.code == "predicted"));
        let mut other = Device { name: "another board", n_timed: 0 };
        let (same, _) = run(&pipeline, Some(&mut other)).unwrap();
        assert_eq!(of_law(&same), of_law(&graph));
        assert_eq!(other.n_timed, 0);
    }
}

#[test]
fn on_the_device_itself_whole_networks_are_run() {
    let mut device = Device { name: "a made-up board", n_timed: 0 };
    let pipeline = "allocate-ranks:target=latency:0.5:device=board.json,factorize-conv";
    let (_, report) = run(pipeline, Some(&mut device)).unwrap();
    assert!(report.remarks().any(|r| r.code == "timed"));
    // The network, and pairs of networks for at most six trials; no layers.
    assert!((3..=13).contains(&device.n_timed), "{}", device.n_timed);
}

#[test]
fn a_profile_that_cannot_be_used_is_an_error() {
    for (options, words) in [
        ("target=latency:0.5:device=elsewhere.json", "device=elsewhere.json: no such file"),
        ("target=macs:0.5:device=board.json", "it needs target=latency"),
        ("target=latency:0.01:device=board.json", "no ranks bring the time"),
    ] {
        let error = run(&format!("allocate-ranks:{options}"), None).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

/// The program measures this machine; where it stopped it goes on.
#[test]
fn a_profile_is_measured_in_parts_and_used() {
    let b = Bench::new();
    let (text, _) = b.run(0, &["profile-device", "-o", "here.json", "--samples", "12", "-q"]);
    assert!(text.contains("12 layers in here.json"), "{text}");
    let first = DeviceProfile::parse(std::str::from_utf8(&b.read("here.json")).unwrap()).unwrap();
    assert_eq!((first.samples.len(), first.chains.len()), (12, 1));

    let report =
        b.run(0, &["profile-device", "-o", "here.json", "--samples", "24", "-q", "--format", "json"]).0;
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["complete"], &report["n_samples"]), (&true.into(), &24.into()));
    let more = DeviceProfile::parse(std::str::from_utf8(&b.read("here.json")).unwrap()).unwrap();
    for (a, b) in first.samples.iter().zip(&more.samples) {
        assert!(a.work == b.work && (a.ms / b.ms - 1.0).abs() < 1e-12, "measured once");
    }

    // Other settings are another device, and what is no profile is not overwritten.
    let other = b.run(1, &["profile-device", "-o", "here.json", "--threads", "2", "-q"]).1;
    assert!(other.contains("of another device or setting"), "{other}");
    std::fs::write(b.dir.path().join("notes.txt"), "not a profile").unwrap();
    let other = b.run(1, &["profile-device", "-o", "notes.txt", "-q"]).1;
    assert!(other.contains("notes.txt: not overwritten"), "{other}");
    assert_eq!(b.read("notes.txt"), b"not a profile");

    // Made-up times that cover what the network needs.
    std::fs::write(b.dir.path().join("board.json"), board()).unwrap();
    let fixed = ["--no-check", "-q", "-o", "small.onnx", "--remarks"];
    let pipeline = "@fold,allocate-ranks:target=latency:0.7:device=board.json,factorize-conv";
    let remarks = b.run(0, &[&["opt", "glyphnet.onnx", "-p", pipeline][..], &fixed].concat()).1;
    assert!(b.has("small.onnx"), "{remarks}");
    let flags =
        ["--no-memory", "--runs", "2", "--seconds", "0", "--device", "board.json", "--format", "json"];
    let rows = b.run(0, &[&["bench", "glyphnet.onnx", "small.onnx"][..], &flags].concat()).0;
    let rows: serde_json::Value = serde_json::from_str(&rows).unwrap();
    let ms = |i: usize| rows[i]["predicted_ms"].as_f64().unwrap();
    let share = ms(1) / ms(0);
    assert!(share < 0.7 * 1.05 && share > 0.5, "{share}");
    assert!(rows[0]["pace"].as_f64().unwrap() > 0.0);

    // Stock tract is not what the profile is of; where nothing is factored it makes no difference.
    let both = ["bench", "glyphnet.onnx", "small.onnx", "--engine", "stock,fused", "--html", "page.html"];
    let (text, notes) = b.run(0, &[&both[..], &flags[..7]].concat());
    let (_, table) = text.split_once("predictions, the machine being").unwrap();
    let off: Vec<bool> = table.lines().skip(2).map(|row| row.ends_with(" -")).collect();
    assert_eq!(off, [false, true, false], "{text}");
    assert!(notes.contains("board.json is of another device: a made-up board"), "{notes}");
    let page = String::from_utf8(b.read("page.html")).unwrap();
    assert!(page.contains("\"file\":\"small.onnx\"") && !page.contains("/*BENCH*/"));

    let usage = b.run(2, &["compress", "glyphnet.onnx", "--device", "board.json", "-o", "m.onnx"]).1;
    assert!(usage.contains("give --budget latency"), "{usage}");
    let text = b
        .run(
            0,
            &[
                "compress",
                "glyphnet.onnx",
                "--budget",
                "latency=0.7",
                "--device",
                "board.json",
                "--no-bench",
                "-o",
                "m.onnx",
            ],
        )
        .0;
    assert!(text.contains("predicted on a made-up board"), "{text}");
}

/// The made-up board, with what else the network in `fixtures/` is made of.
fn board() -> String {
    let mut profile = profile(160);
    let ([kernel, strides], mut more) = ([[2, 2], [2, 2]], Vec::new());
    let kernel3 = [3, 3];
    for n in [1usize, 2, 4, 8, 16, 32, 64, 128] {
        let (n_channels, output) = (8 + n, [n.min(40), n.min(40)]);
        more.push((Work::Linear { n_in: 8 * n, n_out: n, n_rows: 1 }, 1e-5 * (8 * n * n) as f64));
        more.push((
            Work::Pool { kernel, strides, n_channels, output },
            1e-6 * (n_channels * output[0].pow(2)) as f64,
        ));
        more.push((
            Work::Conv { kernel: [1, 1], strides: [1, 1], n_in: n, n_out: 2 * n, output },
            1e-6 * (2 * n * n * output[0].pow(2)) as f64,
        ));
        let depthwise = Work::Depthwise { kernel: kernel3, strides: [1, 1], n_channels, output };
        more.push((depthwise, 9e-6 * (n_channels * output[0].pow(2)) as f64));
        more.push((Work::Copy { n_elements: 100 * n }, 1e-6 * (100 * n) as f64));
        more.push((Work::Exp { n_elements: 100 * n }, 1e-5 * (100 * n) as f64));
    }
    let sample = |(work, ms): (Work, f64)| Sample { work, ms: ms + 1e-3 + OVERHEAD_MS, pace_ms: 1.0 };
    profile.samples.extend(more.into_iter().map(sample));
    serde_json::to_string(&profile).unwrap()
}
