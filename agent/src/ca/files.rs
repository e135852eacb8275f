//! Reading a directory in Istio's `cacerts` form.
