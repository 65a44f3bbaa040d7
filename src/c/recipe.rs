//! What the network is to become.

use crate::read::{Versioned, text, versioned};
use crate::status::Failure;
use basisopt_embed::{Method, Recipe};
use std::ffi::c_char;
use std::mem::offset_of;

/// What the network is to become, as the options of `basisopt compress` say it. Set it to zero throughout, `size` to
/// `sizeof(BasisoptRecipe)`, and then what you want. NULL is always: not given.
///
/// At most one of `budget`, `energy` and `ranks` may be given. With none of them at most one point of accuracy is
/// given up where there are images, and 95 % of every layer's energy kept where there are none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BasisoptRecipe {
    /// `sizeof(BasisoptRecipe)`.
    pub size: usize,
    /// What to aim for: `macs=0.36`, `params=0.5`, `bytes=0.5`, `latency=0.6`, `energy=0.9`, `drop=1.0`.
    pub budget: *const c_char,
    /// Share of the energy that every factored layer keeps, 0 to 1.
    pub energy: *const c_char,
    /// A file of ranks: `ranks_file` of an earlier report, perhaps edited.
    pub ranks: *const c_char,
    /// Whose time a budget of latency is of: `here`, or the file of a device's profile.
    pub device: *const c_char,
    /// What factors are made from: `weights`, `output` or `sequential`; NULL: sequential with images, weights without.
    pub method: *const c_char,
    /// Ranks are rounded to multiples of this.
    pub multiple: *const c_char,
    /// Only layers whose node name matches these globs, joined by `|`.
    pub include: *const c_char,
    /// Not the layers whose node name matches these globs, joined by `|`.
    pub exclude: *const c_char,
    /// Train, with these options of `fine-tune`, joined by colons, as in `epochs=10:flip=on`; empty text: with its
    /// defaults.
    pub fine_tune: *const c_char,
    /// With training: stop when no more than so many points of accuracy are lost, as in `1.0`.
    pub goal: *const c_char,
    /// Other than 0: ranks are chosen by the paper's greedy rule.
    pub greedy: usize,
}

// SAFETY: integers and pointers; zeros are a value of each.
unsafe impl Versioned for BasisoptRecipe {
    const NAME: &'static str = "BasisoptRecipe";
    const FIRST_SIZE: usize = offset_of!(Self, greedy) + size_of::<usize>();
}
const _: () = assert!(size_of::<BasisoptRecipe>() == BasisoptRecipe::FIRST_SIZE);

/// The recipe, read; the default one for a null pointer.
///
/// # Safety
/// As in the module `read`: for the struct and everything that it points to.
pub(crate) unsafe fn read(ptr: *const BasisoptRecipe) -> Result<Recipe, Failure> {
    // SAFETY: the caller's promise.
    let Some(given) = (unsafe { versioned(ptr, "recipe")? }) else { return Ok(Recipe::default()) };
    // SAFETY: the caller's promise, for the texts that the struct points to.
    let text = |ptr: *const c_char, what: &str| unsafe { text(ptr, what) };
    let method = match text(given.method, "recipe.method")? {
        None => None,
        Some(name) => Some(Method::from_name(&name).ok_or(Failure::Code {
            what: "recipe.method",
            found: format!("{name:?}"),
            expected: "weights, output or sequential",
        })?),
    };
    let goal = match text(given.goal, "recipe.goal")? {
        None => None,
        Some(goal) => Some(goal.parse().ok().filter(|g: &f64| g.is_finite()).ok_or(Failure::Code {
            what: "recipe.goal",
            found: format!("{goal:?}"),
            expected: "a number of points",
        })?),
    };
    Ok(Recipe {
        budget: text(given.budget, "recipe.budget")?,
        device: text(given.device, "recipe.device")?,
        energy: text(given.energy, "recipe.energy")?,
        ranks: text(given.ranks, "recipe.ranks")?,
        method,
        greedy: given.greedy != 0,
        multiple: text(given.multiple, "recipe.multiple")?,
        include: text(given.include, "recipe.include")?,
        exclude: text(given.exclude, "recipe.exclude")?,
        fine_tune: text(given.fine_tune, "recipe.fine_tune")?,
        goal,
    })
}
