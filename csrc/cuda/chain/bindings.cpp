#include "cuda/chain/bindings.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/chain_specs_bindings.h"
#include "cuda/chain/chain.h"

namespace py = pybind11;

namespace oes::cuda::chain {
namespace {

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

template <typename T>
void expect_finished(const Chain<T>& self) {
  if (!self.finished()) {
    throw py::value_error("chain: expected to be finished");
  }
}

template <typename T>
void forward(
    Chain<T>& self, Address weights, Address source, bool source_shared, Address out,
    const std::vector<Address>& running, const std::vector<int64_t>& running_strides, Address target, Address weight,
    Address loss, Address stream) {
  expect_finished(self);
  if (target != 0 && self.ends_in_norm()) {
    throw py::value_error("target: expected none where the image comes from a norm");
  }
  if (weight != 0 && target == 0) {
    throw py::value_error("weight: expected none without a target");
  }
  const size_t norms = self.norms();
  if (!running.empty() && (running.size() != 2 * norms || running_strides.size() != norms)) {
    throw py::value_error(
        "running: expected none, or " + std::to_string(2 * norms) + " addresses and " + std::to_string(norms) +
        " strides, got " + std::to_string(running.size()) + " and " + std::to_string(running_strides.size()));
  }
  std::vector<RunningStats<T>> statistics;
  for (size_t i = 0; i < running.size(); i += 2) {
    if ((running[i] == 0) != (running[i + 1] == 0)) {
      throw py::value_error("running: expected mean and variance of a norm together");
    }
    statistics.push_back({at<T>(running[i]), at<T>(running[i + 1]), running_strides[i / 2]});
  }
  const py::gil_scoped_release release;
  self.forward(
      {at<T>(weights), at<T>(source), source_shared, at<T>(out), statistics, at<T>(target), at<T>(weight), at<T>(loss),
       reinterpret_cast<cudaStream_t>(stream)});
}

template <typename T>
void backward(
    Chain<T>& self, Address weights, Address source, bool source_shared, Address grad, Address grad_weights,
    Address grad_source, Address stream) {
  expect_finished(self);
  if (grad == 0 && !self.has_loss()) {
    throw py::value_error("grad: expected one, since the last forward had no target");
  }
  const py::gil_scoped_release release;
  self.backward(
      {at<T>(weights), at<T>(source), source_shared, at<T>(grad), at<T>(grad_weights), at<T>(grad_source),
       reinterpret_cast<cudaStream_t>(stream)});
}

template <typename T>
void bind(py::module_& module, const char* name) {
  using C = Chain<T>;
  py::class_<C>(
      module, name,
      "Convolutions and batch norms run as one on a GPU, for one thread at a time; see "
      "oes_fast/rewrite/run/chain_program.py.")
      .def(
          py::init<int64_t, int64_t, int64_t, int64_t, bool, int64_t, conv::Products, int, const std::vector<int>&>(),
          py::arg("networks"), py::arg("channels"), py::arg("rows"), py::arg("columns"), py::arg("constant_input"),
          py::arg("weights"), py::arg("products"), py::arg("device"), py::arg("groups") = std::vector<int>())
      .def("add_conv", &C::add_conv, py::arg("spec"))
      .def("add_norm", &C::add_norm, py::arg("spec"))
      .def("finish", &C::finish, py::arg("act"), py::arg("slope"))
      .def_property_readonly("shape", &C::shape, "Channels, rows and columns of the result of a network.")
      .def_property_readonly("source_size", &C::source_size, "Elements of the source of a network.")
      .def_property_readonly("has_loss", &C::has_loss, "Whether the last forward had a target.")
      .def("explain", &C::explain, "How each convolution is computed.")
      .def("launches", &C::launches, "What a forward and a backward launch, in order.")
      .def(
          "forward", &forward<T>, py::arg("weights"), py::arg("source"), py::arg("source_shared"), py::arg("out"),
          py::arg("running"), py::arg("running_strides"), py::arg("target"), py::arg("weight"), py::arg("loss"),
          py::arg("stream"),
          "From the addresses of weights and source writes the output, mean and variance of every norm (0 for none), "
          "and the mean squared error to the target, where there is one, each times its weight unless that is 0.")
      .def(
          "backward", &backward<T>, py::arg("weights"), py::arg("source"), py::arg("source_shared"), py::arg("grad"),
          py::arg("grad_weights"), py::arg("grad_source"), py::arg("stream"),
          "Writes grad_weights, and grad_source unless it is 0. grad 0: of the error to the target.");
}

} // namespace

void bind_python(py::module_& module) {
  bind_chain_specs(module);
  py::enum_<conv::Products>(module, "Products")
      .value("FLOAT32", conv::Products::kFloat32)
      .value("TF32", conv::Products::kTf32)
      .value("TF32X3", conv::Products::kTf32x3);
  py::class_<conv::LaunchWork>(module, "LaunchWork")
      .def_readonly("kernel", &conv::LaunchWork::kernel)
      .def_readonly("blocks", &conv::LaunchWork::blocks)
      .def_readonly("threads", &conv::LaunchWork::threads)
      .def_readonly("shared_bytes", &conv::LaunchWork::shared_bytes)
      .def_readonly("products", &conv::LaunchWork::products)
      .def_readonly("staged", &conv::LaunchWork::staged)
      .def_readonly("outputs", &conv::LaunchWork::outputs)
      .def_readonly("alone", &conv::LaunchWork::alone)
      .def_readonly("chunks", &conv::LaunchWork::chunks);
  module.attr("MOST_HEAD_OUTPUTS") = 4;
  bind<float>(module, "ChainFloat");
  bind<double>(module, "ChainDouble");
}

} // namespace oes::cuda::chain
