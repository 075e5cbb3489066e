#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <string>

#include "cpu/chain/bindings.h"
#include "cpu/chain/source_layout.h"

namespace py = pybind11;

namespace oes::chain {
namespace {

// The elements of an array of type T, at least so many, one behind the other.
template <typename T>
T* elements(const std::string& name, const py::array& array, int64_t least, bool written) {
  if (!py::isinstance<py::array_t<T>>(array)) {
    throw py::type_error(name + ": expected " + std::string(py::str(py::dtype::of<T>())));
  }
  if ((array.flags() & py::array::c_style) == 0 || (written && !array.writeable())) {
    throw py::value_error(name + ": expected contiguous elements" + (written ? " that may be written to" : ""));
  }
  if (array.size() < least) {
    throw py::value_error(
        name + ": expected at least " + std::to_string(least) + " elements, got " + std::to_string(array.size()));
  }
  return static_cast<T*>(const_cast<void*>(array.data())); // NOLINT: const where it is not written
}

template <typename T>
void write_of(const SourceLayout& self, const py::array& image, const py::array& planes) {
  const T* from = elements<T>("image", image, self.image_size(), false);
  T* to = elements<T>("planes", planes, self.planes_size(), true);
  const py::gil_scoped_release release;
  self.write(from, to);
}

void write(const SourceLayout& self, const py::array& image, const py::array& planes) {
  if (py::isinstance<py::array_t<double>>(image)) {
    write_of<double>(self, image, planes);
  } else {
    write_of<float>(self, image, planes);
  }
}

void write_noisy(
    const SourceLayout& self, const py::array& image, const py::array& planes, double std, int64_t seed, int64_t step,
    uint32_t stream) {
  const float* from = elements<float>("image", image, self.image_size(), false);
  float* to = elements<float>("planes", planes, self.planes_size(), true);
  const py::gil_scoped_release release;
  self.write_noisy(from, to, static_cast<float>(std), PhiloxKey(seed, step, stream));
}

} // namespace

void bind_source_layout(py::module_& module) {
  using py::arg;
  py::class_<SourceLayout>(module, "SourceLayout", "A constant source as a chain's first convolution reads it.")
      .def(
          py::init<
              int64_t, int64_t, int64_t, std::vector<int64_t>, std::vector<int64_t>, std::vector<int64_t>, bool, bool,
              bool>(),
          arg("image_channels"), arg("image_rows"), arg("image_columns"), arg("channels"), arg("rows"), arg("columns"),
          arg("box"), arg("phases"), arg("row_major"))
      .def("write", &write, arg("image"), arg("planes"), "Lay the image out; beyond what is written lies slack.")
      .def(
          "write_noisy", &write_noisy, arg("image"), arg("planes"), arg("std"), arg("seed"), arg("step"), arg("stream"),
          "Lay the image out with noise, as add_normal_noise adds it.");
}

} // namespace oes::chain
