//! `--engine`: how factorised layers run.

use basisopt_runtime::Engine;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum EngineArg {
    /// tract as it comes: two convolutions
    Stock,
    /// each pair of factors as one operator
    Fused,
    /// the faster of the two for this network, tried for a moment
    #[default]
    Fastest,
}

impl EngineArg {
    /// The engine that versions of a network are timed with: the faster one is nearly always the fused one.
    pub(crate) fn for_timing(self) -> Engine {
        match self {
            Self::Stock => Engine::Stock,
            Self::Fused | Self::Fastest => Engine::Fused,
        }
    }
}

impl From<EngineArg> for Engine {
    fn from(arg: EngineArg) -> Self {
        match arg {
            EngineArg::Stock => Self::Stock,
            EngineArg::Fused => Self::Fused,
            EngineArg::Fastest => Self::Fastest,
        }
    }
}

/// An engine with how many pairs it runs as one operator.
pub(crate) fn engine_name(engine: &str, n_fused: usize) -> String {
    match n_fused {
        0 => engine.to_owned(),
        n => format!("{engine}, {n} fused"),
    }
}
