//! portreeve-standard
