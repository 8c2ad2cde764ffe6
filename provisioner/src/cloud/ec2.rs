//! Amazon EC2. The only file that names its SDK.
