//! Making a new certificate authority in an empty directory.
