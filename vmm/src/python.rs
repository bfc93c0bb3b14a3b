//! The only file that knows PyO3: `kvmserver._vmm` as `_vmm.pyi` describes it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde_json::{Value, json};

use crate::config::{SandboxConfig, ServeConfig, StorageConfig};
use crate::linux::clock::host_monotonic;
use crate::platform::kvm::{Capabilities, Host, exit_cost_ns};
use crate::sandbox::{self, LoadSandboxError, RunEnd};
use crate::{serve, storage};

create_exception!(_vmm, VmmError, PyException);

fn error(kind: &str, message: impl ToString, hint: impl Into<String>) -> PyErr {
    VmmError::new_err((kind.to_owned(), message.to_string(), hint.into()))
}

const KVM_HINT: &str = "run kvmserver doctor";

fn load_error(failure: &LoadSandboxError) -> PyErr {
    match failure {
        LoadSandboxError::Program(program) => error(program.kind(), program, program.hint()),
        LoadSandboxError::Kvm(kvm) => error("kvm", kvm, KVM_HINT),
        LoadSandboxError::Grant(grant) => error("config", grant, ""),
        LoadSandboxError::AddressSpace(..) => error("system", failure, "choose a smaller --max-address-space"),
        LoadSandboxError::Process(_) => error("system", failure, ""),
    }
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> PyResult<T> {
    serde_json::from_str(text)
        .map_err(|failure| error("config", format!("the configuration is not what the data plane expects: {failure}"), ""))
}

/// The master: one VM with its kernel and program, before the snapshot.
#[pyclass(frozen, module = "kvmserver._vmm")]
struct Sandbox {
    inner: Mutex<Option<sandbox::Sandbox>>,
}

impl Sandbox {
    fn with<T: Send>(&self, py: Python<'_>, act: impl FnOnce(&mut sandbox::Sandbox) -> PyResult<T> + Send) -> PyResult<T> {
        py.detach(|| {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            act(inner.as_mut().ok_or_else(|| PyRuntimeError::new_err("the sandbox has been frozen"))?)
        })
    }
}

fn run_end_json(sandbox: &mut sandbox::Sandbox, end: &RunEnd) -> String {
    let mut value = serde_json::to_value(end).unwrap_or_else(|_| json!({"end": end.name()}));
    if let Value::Object(fields) = &mut value {
        if let Some((listener, errno)) = sandbox.refused_listen() {
            fields.insert("refused_listen".into(), json!({"address": listener.address, "port": listener.port, "error": errno.to_string()}));
        }
        let notes = std::mem::take(&mut sandbox.kernel_mut().notes);
        if !notes.is_empty() {
            fields.insert("notes".into(), json!(notes));
        }
    }
    value.to_string()
}

fn deadline(timeout_ns: u64) -> u64 {
    if timeout_ns == 0 { u64::MAX } else { host_monotonic().saturating_add(timeout_ns) }
}

fn kicker(sandbox: &mut sandbox::Sandbox) -> PyResult<crate::platform::kvm::Kicker> {
    sandbox.kicker().map_err(|errno| error("system", format!("cannot make a timer: {errno}"), ""))
}

#[pymethods]
impl Sandbox {
    #[new]
    #[pyo3(signature = (config, storage=None))]
    fn new(py: Python<'_>, config: &str, storage: Option<&Storage>) -> PyResult<Self> {
        let config: SandboxConfig = parse(config)?;
        let mut sandbox = py.detach(|| sandbox::Sandbox::load(&config)).map_err(|failure| load_error(&failure))?;
        if let Some(link) = storage.and_then(Storage::link) {
            sandbox.connect(link).map_err(|errno| error("system", format!("cannot map memory: {errno}"), ""))?;
        }
        Ok(Self { inner: Mutex::new(Some(sandbox)) })
    }

    fn boot(&self, py: Python<'_>, timeout_ns: u64) -> PyResult<String> {
        self.with(py, |sandbox| {
            let kicker = kicker(sandbox)?;
            let end = sandbox.boot(&kicker, deadline(timeout_ns));
            Ok(run_end_json(sandbox, &end))
        })
    }

    fn request<'py>(&self, py: Python<'py>, data: &[u8], timeout_ns: u64) -> PyResult<(Bound<'py, PyBytes>, String)> {
        let (answer, end) = self.with(py, |sandbox| {
            let listener = sandbox.kernel().listeners().into_iter().find(|listener| listener.listening).map(|listener| listener.id);
            let listener = listener.ok_or_else(|| PyRuntimeError::new_err("the program has no listening socket"))?;
            let kicker = kicker(sandbox)?;
            let (answer, end) = serve::run_in_memory(sandbox, &kicker, listener, data, deadline(timeout_ns));
            let end = run_end_json(sandbox, &end);
            Ok((answer, end))
        })?;
        Ok((PyBytes::new(py, &answer), end))
    }

    fn snapshot(&self, py: Python<'_>) -> PyResult<Snapshot> {
        py.detach(|| {
            let sandbox = self.inner.lock().unwrap_or_else(PoisonError::into_inner).take();
            let sandbox = sandbox.ok_or_else(|| PyRuntimeError::new_err("the sandbox has been frozen"))?;
            let inner = sandbox.freeze().map_err(|failure| error("snapshot", failure, ""))?;
            Ok(Snapshot { inner })
        })
    }
}

/// A frozen program. Survives `os.fork`.
#[pyclass(frozen, module = "kvmserver._vmm")]
struct Snapshot {
    inner: sandbox::Snapshot,
}

#[pymethods]
impl Snapshot {
    fn bytes(&self) -> usize {
        self.inner.bytes()
    }

    fn open_listeners(&self) -> PyResult<()> {
        for listener in self.inner.kernel().listeners().iter().filter(|listener| listener.listening) {
            let Some(socket) = &listener.host else { continue };
            let backlog = i32::try_from(listener.backlog.max(511)).unwrap_or(i32::MAX);
            rustix::net::listen(&**socket, backlog).map_err(|errno| {
                error(
                    "listen",
                    format!("cannot listen on {:?}: {errno}", listener.address),
                    "stop what uses the address, or choose another",
                )
            })?;
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "a descriptor number that Python hands over")]
    #[pyo3(signature = (config, storage=None))]
    fn serve(&self, py: Python<'_>, config: &str, storage: Option<&Storage>) -> PyResult<String> {
        let config: ServeConfig = parse(config)?;
        // SAFETY: the caller keeps the descriptor open for the duration of the call; it is duplicated at once.
        let control = unsafe { BorrowedFd::borrow_raw(config.control_fd) };
        let sockets = config.listen_fds.iter().map(|&fd| {
            // SAFETY: as above.
            let socket = unsafe { BorrowedFd::borrow_raw(fd) };
            socket.try_clone_to_owned()
        });
        let sockets: Vec<OwnedFd> = sockets
            .collect::<Result<_, _>>()
            .map_err(|failure| error("system", format!("cannot use a listening socket: {failure}"), ""))?;
        let suspended = storage.and_then(Storage::take_suspended);
        let stats = py
            .detach(|| serve::serve(&self.inner, &config, control, sockets, suspended))
            .map_err(|failure| error("system", failure, ""))?;
        Ok(serde_json::to_string(&stats).unwrap_or_default())
    }
}

/// The storage program's VM, before and beside the request VMs.
#[pyclass(frozen, module = "kvmserver._vmm")]
struct Storage {
    inner: Mutex<StorageState>,
}

/// Where it is in its life.
enum StorageState {
    Running(storage::Storage),
    Suspended(Box<sandbox::Suspended>),
    Gone,
}

impl Storage {
    fn state(&self) -> std::sync::MutexGuard<'_, StorageState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> Option<sandbox::RemoteLink> {
        match &*self.state() {
            StorageState::Running(storage) => {
                let area = storage.lanes().first()?.clone();
                Some(sandbox::RemoteLink { remote: storage.remote(), lane: 0, area })
            }
            _ => None,
        }
    }

    fn take_suspended(&self) -> Option<sandbox::Suspended> {
        match std::mem::replace(&mut *self.state(), StorageState::Gone) {
            StorageState::Suspended(suspended) => Some(*suspended),
            _ => None,
        }
    }
}

fn storage_error(failure: &storage::BootError) -> PyErr {
    match failure {
        storage::BootError::Load(load) => load_error(load),
        failure => error("system", failure, ""),
    }
}

#[pymethods]
impl Storage {
    #[new]
    fn new(config: &str) -> PyResult<Self> {
        let config: StorageConfig = parse(config)?;
        let storage = storage::Storage::new(&config, 1).map_err(|errno| error("system", format!("cannot share memory: {errno}"), ""))?;
        Ok(Self { inner: Mutex::new(StorageState::Running(storage)) })
    }

    fn boot(&self, py: Python<'_>, timeout_ns: u64) -> PyResult<String> {
        py.detach(|| {
            let state = self.state();
            let StorageState::Running(storage) = &*state else { return Err(PyRuntimeError::new_err("the storage program was suspended")) };
            let mut end = match storage.boot(timeout_ns) {
                Ok(init_ns) => json!({"end": "waiting", "init_ns": init_ns}),
                Err(storage::BootError::Ended(end)) => serde_json::to_value(&end).unwrap_or_else(|_| json!({"end": end.name()})),
                Err(failure) => return Err(storage_error(&failure)),
            };
            let notes: Vec<String> = storage.take_messages().into_iter().map(|message| message.text).collect();
            if !notes.is_empty() {
                end["notes"] = json!(notes);
            }
            storage.look_after(false).map_err(|errno| error("system", format!("cannot start a thread: {errno}"), ""))?;
            Ok(end.to_string())
        })
    }

    fn suspend(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let mut state = self.state();
            let StorageState::Running(storage) = std::mem::replace(&mut *state, StorageState::Gone) else { return Ok(()) };
            match storage.suspend() {
                Ok(suspended) => {
                    *state = StorageState::Suspended(Box::new(suspended));
                    Ok(())
                }
                Err(Some(failure)) => Err(error("storage", format!("cannot suspend the storage program: {failure}"), "")),
                Err(None) => {
                    let said = storage.take_messages();
                    let death = said.iter().find(|message| message.text.starts_with(storage::FAILED));
                    Err(error("storage", death.map_or("the storage program is not running", |message| message.text.as_str()), ""))
                }
            }
        })
    }

    fn discard(&self, py: Python<'_>) {
        py.detach(|| *self.state() = StorageState::Gone);
    }
}

#[pyfunction]
fn probe() -> PyResult<String> {
    #[derive(serde::Serialize)]
    struct Report<'a> {
        #[serde(flatten)]
        capabilities: &'a Capabilities,
        exit_ns: u64,
    }
    let failed = |failure| error("kvm", failure, KVM_HINT);
    let host = Host::get().map_err(failed)?;
    let report = Report { capabilities: host.capabilities(), exit_ns: exit_cost_ns(host).map_err(failed)? };
    Ok(serde_json::to_string(&report).unwrap_or_default())
}

#[pyfunction]
fn kvm_fallbacks() -> PyResult<Vec<&'static str>> {
    let host = Host::get().map_err(|failure| error("kvm", failure, KVM_HINT))?;
    let Capabilities { dirty_ring, sync_registers, pagemap_scan, time_stamp_counter, fsgsbase, .. } = host.capabilities();
    let replaceable = [
        ("dirty_ring", dirty_ring),
        ("sync_registers", sync_registers),
        ("pagemap_scan", pagemap_scan),
        ("time_stamp_counter", time_stamp_counter),
        ("fsgsbase", fsgsbase),
    ];
    Ok(replaceable.into_iter().filter(|(_, has)| !**has).map(|(name, _)| name).collect())
}

#[pyfunction]
fn syscall_table() -> String {
    crate::linux::table::table_json()
}

#[pyfunction]
fn guest_files(py: Python<'_>) -> Vec<(&'static str, Bound<'_, PyBytes>)> {
    crate::guest_files::FILES.iter().map(|(path, content)| (*path, PyBytes::new(py, content))).collect()
}

#[pymodule(gil_used = false)]
fn _vmm(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("VmmError", module.py().get_type::<VmmError>())?;
    module.add_class::<Sandbox>()?;
    module.add_class::<Snapshot>()?;
    module.add_class::<Storage>()?;
    module.add_function(wrap_pyfunction!(probe, module)?)?;
    module.add_function(wrap_pyfunction!(kvm_fallbacks, module)?)?;
    module.add_function(wrap_pyfunction!(guest_files, module)?)?;
    module.add_function(wrap_pyfunction!(syscall_table, module)?)
}
