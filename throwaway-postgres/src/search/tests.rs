use super::*;

/// A folder with programs that do nothing.
struct Stage(PathBuf);

impl Stage {
    fn new(name: &str) -> Self {
        let name = format!("tp-origin-{}-{name}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a new folder");
        Self(path.canonicalize().expect("it exists"))
    }

    fn program(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.join(path);
        let folder = path.parent().expect("it is in a folder");
        fs::create_dir_all(folder).expect("a new folder");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a new file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        folder.to_owned()
    }

    fn server(&self, folder: &str) -> PathBuf {
        self.program(&format!("{folder}/initdb"), "");
        self.program(&format!("{folder}/postgres"), "")
    }

    /// Nothing but what is on this stage.
    fn surroundings(&self) -> Surroundings {
        Surroundings {
            database_url: None,
            programs: None,
            image: None,
            path: self.0.join("path").into(),
            usual: vec![(self.0.join("usual"), "", "bin"), (self.0.clone(), "pgsql-", "bin")],
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("it is ours");
    }
}

#[test]
fn nothing_found_names_the_ways_out_and_what_was_tried() {
    let stage = Stage::new("nothing");
    let error = stage.surroundings().find().expect_err("there is nothing");
    assert_eq!(error.kind(), ErrorKind::NothingFound);
    let text = error.to_string();
    for part in [
        "DATABASE_URL",
        "apt-get",
        "brew",
        "THROWAWAY_POSTGRES_BIN",
        "start Docker",
        "no `docker` on PATH",
        "usual/*/bin",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn database_url_comes_first() {
    let stage = Stage::new("url");
    let url = "postgresql://u@h/d".to_owned();
    let mut surroundings = stage.surroundings();
    surroundings.database_url = Some(OsString::from(&url));
    surroundings.programs = Some("nonsense".into());
    assert_eq!(surroundings.find().ok(), Some(Source::Url(url)));

    surroundings.database_url = Some("mysql://u:secret@h/d".into());
    let error = surroundings.find().expect_err("not PostgreSQL");
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(!error.to_string().contains("secret"));
}

#[test]
fn the_folder_that_was_asked_for_must_have_the_programs() {
    let stage = Stage::new("asked");
    stage.server("path");
    let half = stage.program("half/postgres", "");
    let full = stage.server("full");
    let mut surroundings = stage.surroundings();
    surroundings.programs = Some(half.into());
    let error = surroundings.find().expect_err("initdb is missing");
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(error.to_string().contains("/half"), "{error}");

    surroundings.programs = Some(full.clone().into());
    assert_eq!(surroundings.find().ok(), Some(Source::Programs(full)));
}

#[test]
fn a_link_on_path_leads_to_the_real_folder() {
    let stage = Stage::new("link");
    let real = stage.server("somewhere/bin");
    fs::create_dir(stage.0.join("path")).expect("a new folder");
    for program in ["initdb", "postgres"] {
        std::os::unix::fs::symlink(real.join(program), stage.0.join("path").join(program))
            .expect("a new link");
    }
    assert_eq!(stage.surroundings().find().ok(), Some(Source::Programs(real.clone())));
    // Debian's own PATH has only some of them.
    fs::remove_file(stage.0.join("path/postgres")).expect("it is there");
    assert_eq!(stage.surroundings().find().ok(), Some(Source::Programs(real)));
}

#[test]
fn path_comes_before_pg_config_and_that_before_the_usual_places_newest_first() {
    let stage = Stage::new("order");
    stage.server("usual/9.6/bin");
    let newest = stage.server("usual/18/bin");
    stage.server("pgsql-17/bin");
    stage.program("usual/19/bin/psql", "");
    let surroundings = stage.surroundings();
    assert_eq!(surroundings.find().ok(), Some(Source::Programs(newest)));

    let configured = stage.server("configured");
    stage.program("path/pg_config", &format!("echo {}", configured.display()));
    assert_eq!(surroundings.find().ok(), Some(Source::Programs(configured)));

    let first = stage.server("path");
    assert_eq!(surroundings.find().ok(), Some(Source::Programs(first)));
}

#[test]
fn docker_is_the_last_way_and_needs_an_engine() {
    let stage = Stage::new("docker");
    stage.program("path/docker", "exit 1");
    let mut surroundings = stage.surroundings();
    let error = surroundings.find().expect_err("no engine");
    assert_eq!(error.kind(), ErrorKind::NothingFound);

    surroundings.image = Some("postgis/postgis:17-3.5".into());
    let error = surroundings.find().expect_err("no engine");
    assert_eq!(error.kind(), ErrorKind::Unusable);

    stage.program("path/docker", "test $1 = version");
    let image = "postgis/postgis:17-3.5".to_owned();
    assert_eq!(surroundings.find().ok(), Some(Source::Docker(image)));
    surroundings.image = None;
    assert_eq!(surroundings.find().ok(), Some(Source::Docker(DEFAULT_IMAGE.to_owned())));
}

#[test]
fn an_engine_that_hangs_counts_as_none() {
    let stage = Stage::new("hang");
    stage.program("path/docker", "exec sleep 60");
    let begin = Instant::now();
    let error = stage.surroundings().find().expect_err("no engine");
    assert_eq!(error.kind(), ErrorKind::NothingFound);
    assert!(begin.elapsed() < Duration::from_secs(10));
}
