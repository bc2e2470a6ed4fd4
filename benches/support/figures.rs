//! Figures of several rounds, as text.

pub fn spread(mut of: Vec<f64>, digits: usize) -> String {
    of.sort_by(f64::total_cmp);
    let (least, most) = (of[0], of[of.len() - 1]);
    format!("{:.digits$} ({least:.digits$} to {most:.digits$})", median(of))
}

pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
