//! portreeve-legacy
