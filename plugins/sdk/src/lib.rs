//! portreeve-plugin-sdk
