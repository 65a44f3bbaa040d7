//! What a linker needs to be told, so that plain cargo builds the library as maturin does: on macOS, that Python's symbols
//! are there later.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
