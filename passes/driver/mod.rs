//! What every pass shares: the traits, options, remarks, pipelines and the manager that owns the
//! discipline.

pub mod bisect;
pub mod check;
pub mod data;
pub mod manager;
pub mod options;
pub mod pass;
pub mod pipeline;
pub mod registry;
pub mod remark;
pub mod rule;
