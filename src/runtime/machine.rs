//! The machine that a measurement was made on, for whoever reads the numbers elsewhere.

use serde::Serialize;
use std::path::Path;

/// What speed depends on. What the system does not tell is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The board, as its device tree names it; most computers have none.
    pub board: Option<String>,
    /// The processor, as it names itself.
    pub cpu: Option<String>,
    /// Architecture that this program was built for: `x86_64`, `aarch64`.
    pub architecture: &'static str,
    /// Processors that this program may use.
    pub n_cpus: usize,
    /// Vector instructions that the kernels here choose from.
    pub instructions: Vec<&'static str>,
    /// Linux's frequency governor: `powersave` and `ondemand` make short measurements slow.
    pub governor: Option<String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            board: device_tree_model(Path::new("/proc/device-tree/model")),
            cpu: cpu_name(&cpuinfo),
            architecture: std::env::consts::ARCH,
            n_cpus: std::thread::available_parallelism().map_or(1, usize::from),
            instructions: instructions(),
            governor: std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
                .ok()
                .map(|g| g.trim().to_owned()),
        }
    }

    /// One line of it.
    pub fn summary(&self) -> String {
        let cpu = self.cpu.as_ref().or(self.board.as_ref()).map_or(self.architecture, String::as_str);
        let mut line = format!("{cpu}, {} CPUs, {}", self.n_cpus, self.instructions.join(" "));
        if let Some(governor) = &self.governor {
            line.push_str("; governor ");
            line.push_str(governor);
        }
        line
    }
}

/// x86 has a name, ARM a part number by maker.
fn cpu_name(cpuinfo: &str) -> Option<String> {
    let field = |key: &str| {
        let line = cpuinfo.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).filter(|v| !v.is_empty())
    };
    field("model name").or_else(|| {
        let (maker, part) = (field("CPU implementer")?, field("CPU part")?);
        Some(format!("ARM implementer {maker} part {part}"))
    })
}

fn device_tree_model(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end_matches('\0').trim().to_owned()).filter(|t| !t.is_empty())
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    let mut found = Vec::new();
    for (is_there, name) in [
        (is_x86_feature_detected!("avx2"), "AVX2"),
        (is_x86_feature_detected!("fma"), "FMA"),
        (is_x86_feature_detected!("avx512f"), "AVX-512"),
    ] {
        if is_there {
            found.push(name);
        }
    }
    found
}

#[cfg(target_arch = "aarch64")]
fn instructions() -> Vec<&'static str> {
    vec!["NEON"]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::cpu_name;

    #[test]
    fn processors_have_names() {
        let x86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nflags\t\t: fpu\n";
        assert_eq!(cpu_name(x86).as_deref(), Some("Some CPU @ 2.0GHz"));
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0b\n";
        assert_eq!(cpu_name(arm).as_deref(), Some("ARM implementer 0x41 part 0xd0b"));
        assert_eq!(cpu_name(""), None);
    }
}
