//! portreeve-plugin-abi
